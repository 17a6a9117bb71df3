"""What reinforcement with verifiable rewards does to a small token world model, with the commands that a user would type.

    simulate (Push-T) -> convert -> tokenize-world -> rlvr, three seeds -> eval video, for a multi-step and a single-step base

The bases travel with the package (``worldsim/bases/token-tiny-*``; their recipes lie beside them). Everything lands under
``runs/rlvr-demo``: a report page per seed, and ``summary.json`` for machines. Typing it again continues where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from demo import Failed, Teller, program

from worldsim.core.config import fingerprint
from worldsim.core.files import read_json, write_json
from worldsim.train.tracking import METRICS, read_rows

BASES = Path(__file__).resolve().parents[1] / "worldsim" / "bases"
# A close view of a large agent: what moves fills the picture.
PUSHT = {
    "size": 32,
    "control": "velocity",
    "workspace": 256,
    "agent_radius": 32,
    "block_scale": 16,
    "look": "night",
    "apart": "true",
}
QUICK = ("scripted:wander,speed=0.3", "scripted:push,speed=0.3", "scripted:wander,speed=0.08")
SLOW = ("scripted:wander,speed=0.08",)
KINDS = ("multi", "single")
ROWS = {"base": "baseline", "base_best_temperature": "control", "rlvr": "model", "copy": "copy_last", "floor": "ceiling"}
SCORES = ("mse", "motion_mse", "mae", "ssim", "perceptual")
RESAMPLES = 2000


@dataclass(frozen=True)
class Story:
    """How much of everything. The defaults are what ``make rlvr-demo`` shows; a test tells it shorter.

    Attributes:
        out: where all of it goes.
        episodes: simulated at mixed speeds; four fifths are learnt from, a fifth is held out and scored.
        slow: simulated in slow motion, all of them scored and none learnt from: for the repetition rate.
        steps: actions per episode.
        seeds: how many seeds of RL.
        samples: futures per held-out scene.
        temperature: at which base and RL are compared for repetition.
        bases: folder of the two bases ``token-tiny-multi`` and ``token-tiny-single``.
        rlvr, eval: overrides of the recipes, ``key=value``.
    """

    out: Path = Path("runs/rlvr-demo")
    episodes: int = 400
    slow: int = 32
    steps: int = 24
    seeds: int = 3
    samples: int = 4
    temperature: float = 0.5
    bases: Path = BASES
    rlvr: tuple[str, ...] = ()
    eval: tuple[str, ...] = ()

    def base(self, kind: str) -> Path:
        return self.bases / f"token-tiny-{kind}"

    def run(self, kind: str, seed: int) -> Path:
        return self.out / f"{kind}-{seed}"


def tell(story: Story) -> dict[str, Any]:
    """The whole story; returns what ``summary.json`` holds. Told before by the same program, it is not told again."""
    out, teller = story.out, Teller()
    told = out / "told.json"
    me = {"story": fingerprint({k: str(v) for k, v in vars(story).items()}), "program": program()}
    if told.exists() and read_json(told) == me and (out / "summary.json").exists():
        print(f"rlvr-demo: already done -> {out}")
        return read_json(out / "summary.json")
    episodes, slow = data(story, teller)
    for kind in KINDS:
        for seed in range(story.seeds):
            improve(story, teller, kind, seed, episodes)
            judge(story, teller, kind, seed, episodes, slow)
    summary = summarise(story)
    write_json(out / "summary.json", summary)
    write_json(told, me)
    return summary


def data(story: Story, teller: Teller) -> tuple[Path, Path]:
    """The two datasets as oxe-npz; what is learnt from is tokenised, once for both bases, which share a tokenizer."""
    folders = []
    sets: tuple[tuple[str, tuple[str, ...], int, int], ...] = (
        ("pusht", QUICK, story.episodes, 0),
        ("slow", SLOW, story.slow, 500_000),
    )
    for name, policies, count, seed in sets:
        recorded, episodes = story.out / "data" / name, story.out / name
        words = [word for policy in policies for word in ("--policy", policy)]
        words += [word for key, value in PUSHT.items() for word in ("--set", f"{key}={value}")]
        counts = ["--episodes", count, "--steps", story.steps, "--seed", seed, "--to", "act-hdf5"]
        teller.type("python", "scripts/simulate.py", recorded, "--env", "pusht", *words, *counts)
        teller.type("worldsim", "convert", recorded, "--to", "oxe-npz", "--out", episodes)
        folders.append(episodes)
    words = ["--tokenizer", "fsq-frame", "--checkpoint", story.base("multi"), "--split", "train", "--set", "batch=64"]
    teller.type("worldsim", "tokenize-world", folders[0], *words, "--out", story.out / "tokens")
    return folders[0], folders[1]


def layout(story: Story, kind: str) -> dict[str, Any]:
    """Of a base's sequences, from its card."""
    return read_json(story.base(kind) / "card.json")["layout"]


def improve(story: Story, teller: Teller, kind: str, seed: int, episodes: Path) -> None:
    """One seed of RL."""
    words: list[object] = ["--model", story.base(kind), "--config", f"tiny_{kind}", "--seed", seed]
    words += [word for pair in story.rlvr for word in ("--set", pair)]
    teller.type("worldsim", "rlvr", episodes, *words, "--out", story.run(kind, seed))


def judge(story: Story, teller: Teller, kind: str, seed: int, episodes: Path, slow: Path) -> None:
    """Score one seed beside its base: on held-out episodes, and the multi-step one in slow motion too."""
    run, base = story.run(kind, seed), story.base(kind)
    frames = layout(story, kind)["predicted"]
    metrics = "[" + ",".join((*SCORES, "psnr", "motion_psnr", "truth_motion_psnr")) + "]"
    shared = ["--model", run, "--frames", frames, "--seed", seed, "--set", f"baseline={base}"]
    shared += ["--set", f"num_samples={story.samples}", "--set", "batch=16", "--set", f"metrics={metrics}"]
    shared += [word for pair in story.eval for word in ("--set", pair)]
    tried = "[" + ",".join(f"{t:g}" for t in sorted({0, 0.25, 0.5, 0.75, 1.0, drawn_at(run)})) + "]"
    control = ["--set", "control=true", "--set", "validation=train", "--set", f"control_temperatures={tried}"]
    teller.type("worldsim", "eval", "video", episodes, *shared, *control, "--out", story.out / f"eval-{kind}-{seed}")
    if kind == "multi":
        words = ["--episodes", "all", "--set", f"temperature={story.temperature}", "--set", "permutations=0"]
        teller.type("worldsim", "eval", "video", slow, *shared, *words, "--out", story.out / f"slow-{kind}-{seed}")


def drawn_at(run: Path) -> float:
    """The temperature that a model is scored at; its base is tried there too, so that the comparison is fair."""
    return float(read_json(run / "checkpoint" / "card.json")["sampling"]["temperature"])


def summarise(story: Story) -> dict[str, Any]:
    """``summary.json``: the contract's ``seeds`` are those of the multi-step base; ``single_step`` has its own."""
    multi = [seed_of(story, "multi", seed) for seed in range(story.seeds)]
    single = [seed_of(story, "single", seed) for seed in range(story.seeds)]
    scores = read_json(story.out / "eval-multi-0" / "scores.json")
    return {
        "episodes": len(scores["episodes"]),
        "slow_episodes": len(read_json(story.out / "slow-multi-0" / "scores.json")["episodes"]),
        "horizon": scores["horizon"],
        "samples": story.samples,
        "repetition_temperature": story.temperature,
        "seeds": multi,
        "single_step": {"seeds": single},
        "seconds": round(sum(one["seconds"] for one in (*multi, *single)), 1),
        "single_step_seconds": round(sum(one["seconds"] for one in single), 1),
    }


def seed_of(story: Story, kind: str, seed: int) -> dict[str, Any]:
    """One seed's rows, their intervals over episodes, and the paired changes."""
    scores = read_json(story.out / f"eval-{kind}-{seed}" / "scores.json")
    out: dict[str, Any] = {"seed": seed, "intervals": {}}
    for name, row in ROWS.items():
        cells = scores["summary"][row]
        out[name] = {score: cells[score]["mean"] for score in SCORES}
        out["intervals"][name] = {score: [cells[score]["low"], cells[score]["high"]] for score in SCORES}
    if kind == "multi":
        slow = read_json(story.out / f"slow-{kind}-{seed}" / "scores.json")["repetition"]["tokens"]
        for name in ("base", "rlvr"):
            cell = slow[ROWS[name]]["beyond_truth"]
            out[name]["repetition"] = cell["mean"]
            out["intervals"][name]["repetition"] = [cell["low"], cell["high"]]
        out["truth_repetition"] = slow["truth"]["rate"]["mean"]
        out["base_best_temperature"]["repetition"] = out["copy"]["repetition"] = out["floor"]["repetition"] = None
    out["control"] = {key: scores["control_choice"][key] for key in ("temperature", "top_k", "metric")}
    out["changes"] = {
        against: {score: change(scores, ROWS[against], score) for score in SCORES}
        for against in ("base", "base_best_temperature", "copy")
    }
    learning = sum(row.get("seconds", 0.0) for row in read_rows(story.run(kind, seed) / METRICS))
    # A run that was continued took at least what its iterations took.
    out["seconds"] = round(max(learning, read_json(story.run(kind, seed) / "result.json")["seconds"]), 1)
    return out


def change(scores: dict[str, Any], against: str, score: str) -> dict[str, float]:
    """Relative change of a mean from ``against`` to the model, -0.2 being a fifth lower; paired bootstrap over episodes."""

    def means(row: str) -> np.ndarray:
        return np.nanmean(np.array(scores["per_episode"][row][score], np.float64), axis=1)

    old, new = means(against), means("model")
    kept = np.isfinite(old) & np.isfinite(new)
    old, new = old[kept], new[kept]
    draws = np.random.default_rng(0).integers(0, len(old), (RESAMPLES, len(old)))
    spread = new[draws].mean(1) / old[draws].mean(1) - 1
    low, high = np.percentile(spread, [2.5, 97.5])
    return {"change": float(new.mean() / old.mean() - 1), "low": float(low), "high": float(high)}


def verdict(summary: dict[str, Any], story: Story) -> str:
    """What a reader should take from it, in plain words, misses included."""
    seeds, single = summary["seeds"], summary["single_step"]["seeds"]

    def each(kind: list[dict[str, Any]], pick: Callable[[dict[str, Any]], float]) -> str:
        return ", ".join(f"{pick(one):+.1%}" for one in kind)

    def moved(against: str, score: str) -> Callable[[dict[str, Any]], float]:
        return lambda one: one["changes"][against][score]["change"]

    def level(row: str, score: str) -> Callable[[dict[str, Any]], float]:
        return lambda one: one[row][score]

    def mean(kind: list[dict[str, Any]], pick: Callable[[dict[str, Any]], float]) -> float:
        return float(np.mean([pick(one) for one in kind]))

    def repeats(one: dict[str, Any]) -> float:
        return one["rlvr"]["repetition"] / (one["base"]["repetition"] or np.nan) - 1

    mse, best = moved("base", "mse"), moved("base_best_temperature", "motion_mse")
    over, under = (mean(seeds, level(row, "repetition")) for row in ("base", "rlvr"))
    base, copy = (mean(seeds, level(row, "motion_mse")) for row in ("base", "copy"))
    checks = [
        (base < copy, f"the base beats copying the given frame in motion-masked MSE: {base:.4f} against {copy:.4f}"),
        (
            summary["seconds"] <= 1200,
            f"RL of all seeds within 20 minutes: {summary['seconds']:.0f} s, of which {summary['single_step_seconds']:.0f} s "
            "single-step",
        ),
        (
            mean(seeds, mse) <= -0.15 and all(mse(one) < 0 for one in seeds),
            f"MSE at least 15 % below the base at temperature 1: {mean(seeds, mse):+.1%} ({each(seeds, mse)})",
        ),
        (
            mean(seeds, best) <= -0.08,
            "motion-masked MSE at least 8 % below the base at its best temperature and top-k: "
            f"{mean(seeds, best):+.1%} ({each(seeds, best)})",
        ),
        (
            over >= 0.1 and under <= 0.25 * over,
            f"repetition beyond the truth's at temperature {story.temperature:g} at least 75 % lower, from 10 points or more: "
            f"{100 * over:.1f} -> {100 * under:.1f} points ({each(seeds, repeats)})",
        ),
        (
            all(moved("base", score)(one) < 0 for one in single for score in ("mse", "perceptual")),
            f"single-step MSE and perceptual error lower for every seed: {each(single, moved('base', 'mse'))} and "
            f"{each(single, moved('base', 'perceptual'))}",
        ),
    ]
    lines = [f"rlvr-demo: {summary['episodes']} held-out episodes, {summary['horizon']} frames, {story.seeds} seeds"]
    lines += [f"  {'yes' if good else 'NO '}  {text}" for good, text in checks]
    beside = ", ".join(
        f"{what} {name} {mean(kind, moved('base_best_temperature', score)):+.1%}"
        for what, kind in (("multi-step", seeds), ("single-step", single))
        for name, score in (("MSE", "mse"), ("MAE", "mae"))
    )
    lines.append(f"  against the base at its best temperature: {beside} (all other gain is that of a lower temperature)")
    if summary["episodes"] < 16 or story.seeds < 3:
        lines.append("  Too few episodes or seeds to conclude anything.")
    return "\n".join([*lines, f"  open {story.out / 'eval-multi-0' / 'report' / 'index.html'}"])


def main(argv: Sequence[str] | None = None) -> int:
    default = Story()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("out", "bases"):
        parser.add_argument(f"--{name}", type=Path, default=getattr(default, name))
    for name in ("episodes", "slow", "steps", "seeds", "samples"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--temperature", type=float, default=default.temperature)
    for name in ("rlvr", "eval"):
        parser.add_argument(f"--{name}", action="append", default=[], metavar="key=value", help="override of the recipe")
    given = vars(parser.parse_args(argv))
    story = Story(**{**given, "rlvr": tuple(given["rlvr"]), "eval": tuple(given["eval"])})
    try:
        summary = tell(story)
    except Failed as failed:
        print(f"rlvr-demo: stopped; the same command continues, or to start afresh: rm -r {story.out}", file=sys.stderr)
        return failed.code
    print(f"\n{verdict(summary, story)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
