"""The report of a world-modality experiment, with the headings of the original one: every number comes from ``comparison.json``.

# source: charbelsan/world-modality-vla@7b3d6e7:REPORT.md, the headings
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worldsim.commands import _modality_tables as tables
from worldsim.commands._modality_summary import uses
from worldsim.core.errors import as_typed
from worldsim.report.document import Block, Code, Document, Facts, Figure, Items, Section

Json = Mapping[str, Any]
TITLE = "World tokens as a new modality"
ARMS = {
    "A": "Baseline A (standard BC): [OBS] [ACT x H]. It sees image embedding and state, and predicts actions alone.",
    "B": "Baseline B (auxiliary future token loss): [OBS] [FUT x K] [ACT x H]. It also predicts the next K world tokens.",
    "C": "Model C (world token modality): [OBS] [WORLD] [FUT x K] [ACT x H]. It reads the current world token as well.",
    "C_no_input": "C_no_input (control): C's code path and B's layout, no token is read.",
    "C_hist": "C_hist: [OBS] [WORLD x context] [FUT x K] [ACT x H]. It reads the tokens of all context frames.",
    "C_pred": "C_pred: two passes; soft embeddings of its predicted futures reach the actions by cross attention, gate 0 at first.",
    "A_plus": "A_plus: A with wider feed-forward layers, as many parameters as C.",
    "C_oracle": "C_oracle: as C_pred with the true future tokens: an upper bound, no policy.",
}
DEVIATIONS = (
    "Differs from the original experiment on purpose: one codebook, fitted on training episodes and used for every split; "
    "windows never cross an episode's end; frames reach the encoder as uint8, scaled once; actions and states are normalised by "
    "training statistics; errors are averaged per sample; intervals are drawn over episodes."
)
PRESENT = (
    "The current token is a function of the image embedding that every arm sees, so C adds no information about the present, "
    "only a discretised view of it; C_hist (past tokens) and C_pred (predicted futures) add what A lacks."
)
FUTURE_WORK = (
    "Longer token sequences, loss weights and horizons: `train --config world_modality_all` with `--set lambda_world=0.05`, "
    "`--set future=16`, …, and this report for each.",
    "Codebook and encoder: `tokenize-world --tokenizer kmeans` with `--num-tokens 256`, `--set pooling=grid2` (patch tokens) or "
    "another `--vision-model`, the project's own tokenizers among them.",
    "Data efficiency: the same arms with `--set data_fraction=0.25`, given to `eval offline` together with these.",
    "Language-conditioned policies, and trials on a robot: `worldsim robot run --policy RUN --robot so100`.",
)


def document(c: Json) -> Document:
    """The whole report; figures named in ``c["figures"]`` must lie in its folder."""
    sections = [
        Section("1. Setup", [Facts(pairs(c["setup"]))]),
        Section("2. Models", _models(c)),
        Section("3. Training Curves", _shown(c, "curves") or ["No run has a metrics.jsonl, so there are no curves."]),
        Section("4. Offline Evaluation", []),
        Section("4.1 Metrics", _metrics(c), 3),
        Section("4.2 Open-loop Rollouts", _open_loop(c), 3),
        Section("4.3 Interventions on the world input", _interventions(c), 3),
        *([Section("4.4 Data efficiency", [tables.efficiency(c), *_shown(c, "efficiency")], 3)] if c["efficiency"] else []),
        Section("5. Real Robot Evaluation", []),
        *_closed_loop(c),
        Section("6. World Tokens & Imagination", []),
        Section("6.1 Codebook & Tokens", [Facts(pairs(c["codebook"])), *_shown(c, "codebook")], 3),
        Section("6.2 Future Token Visualization", _visualised(c), 3),
        Section("7. Discussion", discussion(c)),
        Section("8. Future Work", [Items(FUTURE_WORK)]),
        Section("How the numbers were made", _method(c)),
    ]
    runs = sum(len(s["seeds"]) for s in c["arms"].values())
    subtitle = f"{_counted(runs, 'run')} of {_counted(len(c['arms']), 'arm')} on {c['data']}: {_size(c)}"
    return Document(TITLE, c["conclusion"], sections, subtitle)


def intervention_document(c: Json) -> Document:
    """The report of ``eval intervene`` alone."""
    by_joint = tables.ratios_by(c, "by_joint", c["action_names"], "Corrupted / clean action MSE per action entry.")
    titles = [f"+{k}" for k in range(c["horizon"])]
    by_step = tables.ratios_by(c, "by_step", titles, "Corrupted / clean action MSE by step of the chunk.")
    sections = [
        Section("Setup", [Facts(pairs(c["setup"]))]),
        Section("Ratios", [tables.ratios(c), *_shown(c, "graded")]),
        Section("By step of the chunk", [*_shown(c, "ratios_by_step"), by_step]),
        Section("By action entry", [by_joint]),
        Section("Attention and gradient", [tables.inside(c)]),
        Section("What it means", [*_use_words(c), PRESENT]),
        Section("How the numbers were made", _method(c)),
    ]
    subtitle = f"{', '.join(c['arms'])} on {c['data']}: {_size(c)}"
    return Document("Interventions on the world input", c["conclusion"], sections, subtitle)


def pairs(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(word, "unknown" if value is None else str(value)) for word, value in facts.items()]


def _size(c: Json) -> str:
    return f"{_counted(len(c['episodes']), 'held-out episode')}, {_counted(c['windows'], 'window')}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _shown(c: Json, key: str) -> list[Block]:
    return [Figure(figure["path"], figure["caption"]) for figure in c["figures"].get(key, [])]


def _models(c: Json) -> list[Block]:
    described = [f"{ARMS.get(arm, arm)} {s['parameters']:,} parameters." for arm, s in c["arms"].items()]
    trained = ", ".join(f"{key} {value}" for key, value in c["training"].items())
    return [Items(described), f"Trained with {trained}." if trained else "", DEVIATIONS, PRESENT]


def _metrics(c: Json) -> list[Block]:
    out: list[Block] = [tables.errors(c)]
    if c["differences"]:
        out.append(tables.pairs(c))
    out += [tables.joints(c), tables.seeds(c)]
    if any(s["world"] for s in c["arms"].values()):
        out += [tables.tokens(c), *_shown(c, "tokens"), tables.tokens_by_step(c)]
    return out


def _open_loop(c: Json) -> list[Block]:
    out: list[str] = []
    for arm, s in c["arms"].items():
        if arm in ("A", "C"):
            first, last = (s["by_step"]["mean"][k] for k in (0, -1))
            grows = f"{last / first:.2f} times the first" if first else "the first is 0"
            out.append(f"{arm}: {first:.4g} at the first step, {last:.4g} at step {c['horizon']} of the chunk ({grows}).")
    return [Items(out), *_shown(c, "by_step"), tables.steps(c)]


def _interventions(c: Json) -> list[Block]:
    if not any(s["interventions"] for s in c["arms"].values()):
        return ["No arm that was compared reads world tokens, so there is nothing to corrupt."]
    run = c["example_run"] or "RUN"
    more = Code(f"worldsim eval intervene {c['data']} --model {run}")
    return [*_use_words(c), tables.ratios(c), tables.inside(c), "Every corruption, per action entry and step:", more]


def _use_words(c: Json) -> list[Block]:
    return [Items([f"{text[:1].upper()}{text[1:]}." for text in (use.words for use in uses(c["arms"]))])]


def _closed_loop(c: Json) -> list[Section]:
    found = c["closed_loop"]
    if found is None:
        acting = [run for arm in ("A", "B", "C") for run in c["runs"].get(arm, [])] or [c["example_run"] or "RUN"]
        act = ["worldsim", "eval", "policy", "--env", "metaworld:TASK", *(w for run in acting for w in ("--policy", run))]
        named = [word for runs in c["runs"].values() for run in runs for word in ("--model", run)]
        again = ["worldsim", "eval", "offline", c["data"], *named, "--set", "success=runs/eval-policy/default"]
        how = "Nothing was tried in closed loop. Let the arms act where the data came from, and hand the counts to this report:"
        return [
            Section("5.1 Protocol", [how, Code(f"{as_typed(act)}\n{as_typed([*again, '--out', 'runs/with-success'])}")], 3),
            Section("5.2 Results", [tables.empty_success()], 3),
        ]
    return [
        Section("5.1 Protocol", [Facts(pairs(found["protocol"]))], 3),
        Section("5.2 Results", [tables.success(c), Items(found["comments"])], 3),
    ]


def _visualised(c: Json) -> list[Block]:
    shown = _shown(c, "imagination")
    if not shown:
        return ["No arm that was compared predicts world tokens, so there is nothing to show."]
    about = (
        "Each row is a moment of a held-out episode: the frame that the policy sees, for every step ahead the training frame "
        "nearest to the predicted token's centroid, and below it the frame that really came. A token is one of a few centroids, so "
        "the picture shows what the token stands for, not what the policy would paint."
    )
    return [about, *shown]


def discussion(c: Json) -> list[Block]:
    """What the rule says, pair by pair; each question of the original report is answered by an outcome."""
    found = {(d["arm"], d["base"]): d for d in c["differences"]}
    out: list[str] = []
    for question, pair in (
        ("Did world tokens as a modality help (C against A)?", ("C", "A")),
        ("How much did the auxiliary loss alone help (B against A)?", ("B", "A")),
        ("How much did the tokens as input help (C against B)?", ("C", "B")),
        ("And against the control without token input (C against C_no_input)?", ("C", "C_no_input")),
        ("Does a history of tokens help (C_hist against A)?", ("C_hist", "A")),
        ("Do predicted futures help (C_pred against A)?", ("C_pred", "A")),
        ("What would the true futures give (C_oracle against A)?", ("C_oracle", "A")),
    ):
        if pair in found:
            d = found[pair]
            out.append(f"{question} {answer(d)}")
    return [c["conclusion"], Items([*out, *cautions(c)])]


def answer(d: Json) -> str:
    """One outcome in words, with its numbers."""
    if d["outcome"] == "insufficient":
        return f"Cannot be said: seeds {len(d['seeds'])} of at least 3, held-out episodes {d['episodes']} of at least 5."
    span = f"{d['mean']:+.3g} [{d['low']:+.3g} … {d['high']:+.3g}]"
    part = "" if d["relative"] is None else f", {d['relative']:+.1%} of its error"
    if d["outcome"] in ("lower", "higher"):
        return f"{'Yes' if d['outcome'] == 'lower' else 'No, it harmed'}: {span}{part}."
    return f"{'Not settled, the seeds disagree' if d['outcome'] == 'seeds disagree' else 'No difference is shown'}: {span}{part}."


def cautions(c: Json) -> Sequence[str]:
    """Failure modes and caveats that the numbers themselves show."""
    out, worse = [], []
    for arm, s in c["arms"].items():
        skill = s["world"] and s["world"]["skill"]
        if skill and skill["high"] is not None and skill["high"] < 0:
            worse.append(f"{arm} ({skill['mean']:+.3f})")
    if worse:
        out.append(f"Future tokens are predicted worse than by copying today's; skill: {', '.join(worse)}.")
    if any(
        (d["arm"], d["base"]) == ("C_oracle", "A") and d["outcome"] not in ("lower", "insufficient")
        for d in c["differences"]
    ):
        out.append(
            "Even the true futures do not lower the error here, so C_pred says nothing about how well they are predicted."
        )
    if len(c["differences"]) > 1:
        out.append(f"{len(c['differences'])} pairs are compared at 95 % each, without a correction for their number.")
    if any(d["episodes"] < 20 for d in c["differences"]):
        out.append(f"{len(c['episodes'])} held-out episodes are few: intervals over so few are rough.")
    if c["closed_loop"] is None:
        out.append("Offline error is not success: nothing here has acted in closed loop.")
    return [*out, *c["notes"]]


def _method(c: Json) -> list[Block]:
    facts = {
        "samples": "every window that lies inside one held-out episode, once; episodes count by their windows",
        "intervals": f"95 % bootstrap, {c['resamples']} draws of episodes, the same for all arms (paired); percentiles widened by "
        "Student's t for the number of episodes",
        "seeds": "an arm's error is the mean of its seeds' errors on the same windows; intervals are over episodes, not seeds",
        "normalised": "by the training episodes' action statistics; the same scale for all arms",
        "numbers": "all from comparison.json or intervention.json beside this folder; tables/*.csv hold all digits",
    }
    return [Facts(pairs(facts))]
