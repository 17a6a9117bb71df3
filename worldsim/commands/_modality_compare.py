"""Compare trained arms: measure every run on the same held-out windows, write ``comparison.json`` and ``report/``.

``eval offline`` and ``eval intervene`` are this with other options; ``train --config world_modality_all`` ends with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.commands import _modality_facts, _modality_figures, _modality_imagined, _modality_report, _modality_success
from worldsim.commands._modality_comparison import About, assemble
from worldsim.commands._modality_corruptions import names
from worldsim.commands._modality_runs import Bench, Trained, bench, milliseconds, open_runs
from worldsim.commands._modality_scores import measure, truth_of
from worldsim.commands._modality_summary import Scores, Truth
from worldsim.core.console import progress
from worldsim.core.errors import UserError
from worldsim.core.files import write_json
from worldsim.core.protocols import EpisodeSource
from worldsim.core.types import Result
from worldsim.formats import open_dataset
from worldsim.report.document import render

COMPARISON, INTERVENTION, REPORT = "comparison.json", "intervention.json", "report"
QUICK = ("random", "other_episode", "block", "oracle")
"""Interventions of a comparison; ``eval intervene`` does all."""


@dataclass(frozen=True)
class Options:
    """How to compare.

    Attributes:
        columns: where columns lie; the dataset itself when None. episodes: as in ``infer``; the held-out ones when None.
        interventions: names of ``_modality_corruptions.KNOWN``; none for none. shares: of graded corruption, 0 … 1.
        delay: frames by which ``stale`` tokens are late. resamples: draws of episodes.
        success: result folders of ``eval policy``. clips: held-out episodes whose predicted tokens are shown.
        alone: the report of interventions alone. batch: frames per forward pass of the encoder.
        max_rejected: bad episodes that are accepted.
    """

    columns: str | None = None
    episodes: str | None = None
    interventions: tuple[str, ...] = QUICK
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    delay: int = 8
    resamples: int = 2000
    success: tuple[str, ...] = ()
    clips: int = 2
    alone: bool = False
    batch: int = 64
    max_rejected: int = 0


def compare(
    runs: Sequence[Path],
    data: Path,
    out: Path,
    *,
    options: Options | None = None,
    device: str = "cpu",
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> Result:
    """Measure ``runs`` on ``data``'s held-out episodes and write ``out/comparison.json`` (``intervention.json``) and
    ``out/report/``.

    Args:
        runs: run folders of ``train --config world_modality_…``; several seeds of an arm are averaged, several shares of the
            training data make a data-efficiency table.
        seed: of the draws of episodes and of the corruptions. note: told of remarks.

    Returns:
        a Result whose metrics hold the conclusion and the main numbers.
    """
    options = options or Options()
    command = "eval intervene" if options.alone else "eval offline"
    opened = open_runs(runs, device)
    wanted = names(options.interventions, options.shares)
    if options.alone:
        _require_world(opened)
    source = open_dataset(data)
    try:
        closed_loop = _modality_success.read(options.success)
        on = {"batch": options.batch, "max_rejected": options.max_rejected}
        root = Path(options.columns or data)
        what = bench(opened, data, root, source, options.episodes, device, **on, command=command)
        if len(what.episodes) < 2 and "other_episode" in wanted:
            what.notes.append("one held-out episode cannot borrow tokens from another: other_episode is left out")
            wanted = [name for name in wanted if name != "other_episode"]
        table, truth = _measured(what, source, wanted, seed, options)
        about = _about(what, data, source, options)
        about.closed_loop = closed_loop
        folder = out / REPORT
        shown = {} if options.alone else _modality_imagined.write(folder, what, source, options.clips)
    finally:
        source.close()
    for sentence in what.notes:
        if note is not None:
            note(sentence)
    return _published(what, table, truth, about, shown, out, seed, options)


def _require_world(runs: Sequence[Trained]) -> None:
    for run in runs:
        if not (run.policy.net.reads_world or run.policy.net.reads_future):
            raise UserError(f"{run.run} is arm {run.arm}, which reads no world tokens: there is nothing to intervene on")


def _measured(
    what: Bench, source: EpisodeSource, wanted: list[str], seed: int, options: Options
) -> tuple[dict[float, dict[str, dict[int, Scores]]], Truth]:
    """Share of data -> arm -> seed -> scores; and what holds for all."""
    card, tokenizer = what.first.policy.card, what.first.policy.tokenizer
    scale, centroids = card.scaling.actions.scale, tokenizer.centroids.cpu().numpy()  # type: ignore[union-attr]
    train = {name: np.asarray(what.gathered.rows.tokens[name]) for name in what.train}
    truth = truth_of(what.windows(what.first), train, len(centroids), scale)
    table: dict[float, dict[str, dict[int, Scores]]] = {}
    timed: dict[str, float | None] = {}
    with progress("measure", len(what.runs), unit="runs") as bar:
        for run in what.runs:
            scores = measure(run.policy.net, what.windows(run), scale, centroids, wanted, seed, options.delay)
            if run.arm not in timed:  # once per arm: its seeds take the same time
                timed[run.arm] = milliseconds(run, source, what.episodes[0])
            scores.ms = timed[run.arm]
            table.setdefault(run.fraction, {}).setdefault(run.arm, {})[run.seed] = scores
            bar.advance(1, f"{run.arm}-{run.seed}")
    return table, truth


def _about(what: Bench, data: Path, source: EpisodeSource, options: Options) -> About:
    card = what.first.policy.card
    preferred = [run for run in what.runs if run.arm == "C"] or what.runs
    runs: dict[str, list[str]] = {}
    for run in what.runs:
        runs.setdefault(run.arm, []).append(str(run.run))
    return About(
        data=str(data),
        episodes=what.episodes,
        action_names=list(card.action_spec.names),
        units=list(card.action_spec.units),
        context=card.spec.context,
        horizon=card.spec.horizon,
        future=card.spec.future,
        setup=_modality_facts.setup(what, source),
        training=_modality_facts.training(what.first.run),
        codebook=_modality_facts.codebook(what, Path(options.columns or data)),
        delay=options.delay,
        example_run=str(preferred[0].run),
        notes=list(what.notes),
        runs=runs,
    )


def _published(
    what: Bench,
    table: Mapping[float, Mapping[str, Mapping[int, Scores]]],
    truth: Truth,
    about: About,
    shown: dict[str, list[dict[str, str]]],
    out: Path,
    seed: int,
    options: Options,
) -> Result:
    """Write JSON, charts and pages."""
    most = max(table)
    less = {share: arms for share, arms in table.items() if share < most}
    if most < 1:
        about.notes.append(f"all runs were trained on {most:.0%} of the training episodes or less")
    c = assemble(table[most], truth, about, seed, options.resamples, less, share=most, alone=options.alone)
    folder = out / REPORT
    paths = {arm: [run.run for run in what.runs if run.arm == arm and run.fraction == most] for arm in c["arms"]}
    charts = _modality_figures
    if options.alone:
        c["figures"] = {"graded": charts.graded(folder, c), "ratios_by_step": charts.ratios_by_step(folder, c)}
        document = _modality_report.intervention_document(c)
    else:
        curves = {"curves": charts.training_curves(folder, paths), "by_step": charts.error_by_step(folder, c)}
        curves["tokens"] = charts.token_accuracy(folder, c)
        c["figures"] = {**shown, **curves, "efficiency": charts.data_efficiency(folder, c) if c["efficiency"] else []}
        document = _modality_report.document(c)
    write_json(out / (INTERVENTION if options.alone else COMPARISON), c)
    page = render(document, folder)
    return Result(metrics=main_numbers(c), notes=about.notes, summary=summary(c), next=["open", page])


def main_numbers(c: Mapping[str, Any]) -> dict[str, Any]:
    """What ``result.json`` says."""
    kept = (
        "seeds",
        "parameters",
        "ms_per_step",
        "action_mse",
        "action_mse_physical",
        "action_mse_seeds",
        "attention",
        "gradient",
    )
    arms = {}
    for arm, own in c["arms"].items():
        world = own["world"] or {}
        arms[arm] = {
            **{key: own[key] for key in kept},
            "world": {key: world[key] for key in ("top1", "top5", "bits", "skill", "change_top1") if key in world} or None,
            "interventions": {
                name: {"ratio": found["ratio"], "reading": found["reading"]} for name, found in own["interventions"].items()
            },
        }
    rest = {key: c[key] for key in ("conclusion", "windows", "differences", "efficiency", "closed_loop")}
    return {**rest, "episodes": len(c["episodes"]), "arms": arms}


def summary(c: Mapping[str, Any]) -> str:
    """For a terminal: one line per arm, then the sentence."""
    lines = []
    for arm, own in c["arms"].items():
        mse, world = own["action_mse"], own["world"]
        line = f"{arm:<11} action MSE {mse['mean']:.4g} [{mse['low']:.4g} … {mse['high']:.4g}], {len(own['seeds'])} seeds"
        if world and world["top1"]["mean"] is not None:
            line += f"; token top-1 {world['top1']['mean']:.1%}, skill over copy {world['skill']['mean']:+.3f}"
        found = own["interventions"].get("random")
        if found and found["ratio"]["mean"] is not None:
            ratio = found["ratio"]
            line += f"; random tokens x{ratio['mean']:.3f} [{ratio['low']:.3f} … {ratio['high']:.3f}] ({found['reading']})"
        lines.append(line)
    return "\n".join([*lines, c["conclusion"]])
