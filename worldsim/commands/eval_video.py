"""``worldsim eval video``: score imagined videos against the truth and honest reference rows; write a report page.

Writes ``frames/<episode>.npz`` (everything that the scores were made of), ``scores.json`` (per episode and per predicted
frame) and ``report/``, which can be opened from a disk or published.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from worldsim import metrics as shelf
from worldsim.commands import _eval_control, _eval_repeats, infer
from worldsim.commands._agenda import Agenda, Order
from worldsim.commands._eval_alarms import alarm, flicker, shout, untested
from worldsim.commands._eval_control import Control, Search
from worldsim.commands._eval_page import Facts, publish
from worldsim.commands._eval_repeats import Repeats
from worldsim.commands._eval_scores import scores_json
from worldsim.commands._imagine import Studio
from worldsim.commands._world import load_world as load_model
from worldsim.core import registry
from worldsim.core.config import config
from worldsim.core.errors import PartialResult, UserError, again, did_you_mean
from worldsim.core.files import write_json
from worldsim.core.protocols import EpisodeSource
from worldsim.core.runs import RunContext
from worldsim.core.types import Result
from worldsim.data.predictions import MARKS, Prediction, find, load, marks
from worldsim.formats import open_dataset
from worldsim.metrics.scoring import BASELINE, CEILING, COPY, MODEL, Scorer, summarise
from worldsim.world_models import SupportsTokenizer

DEMO_ROWS = {"tuned": MODEL, "base": BASELINE, "copy_last": COPY, "ceiling": CEILING}
DEMO_METRICS = ("psnr", "ssim", "motion_psnr")
TOKEN_METRICS = ("mae", "motion_mse", "perceptual")
"""Scored besides, for token world models: what RL on them is judged by."""
FORCED = (
    "TEACHER-FORCED: latent actions have seen true frames that are imagined here. No number here says how well a model "
    "imagines."
)


@config
class Config:
    """What to score.

    Attributes:
        data: dataset folder, any format.
        model: run folder of a world model, or the name of one without weights (``copy``).
        predictions: folder of ``frames/<episode>.npz`` that are there already; data and model are then not used.
        baseline: another model to show as a row, such as the untuned base; it imagines the same episodes.
        metrics: registered names; one whose weights are missing becomes a note.
        gap_metric: what own and permuted actions are compared by.
        permutations: how often each episode is imagined with another episode's actions; 0 measures no gap.
        resamples: bootstrap draws of episodes for the intervals.
        clips: how many episodes the page shows.
        allow_teacher_forced: score a model whose latent actions have seen true frames that it imagines (of every frame, or of a
            later chunk's start); said everywhere.
        control: also show the baseline, a token model, at its best temperature and top-k.
        control_temperatures, control_top_k: what is tried (``top_k`` 0 takes every code). control_metric: what decides.
        validation: the episodes on which it is decided, as ``episodes``; the dataset's ``val`` part when null. They must not
            be scored. control_episodes: at most so many of them.
        episodes, max_episodes, camera, columns, frames, start, fps, num_samples, batch, steps, guidance, temperature, top_k,
            max_rejected: as in ``infer``.
    """

    data: str | None = None
    model: str | None = None
    predictions: str | None = None
    baseline: str | None = None
    episodes: str | None = None
    max_episodes: int | None = None
    camera: str | None = None
    columns: str | None = None
    frames: int = 16
    start: int | None = None
    fps: float | None = None
    num_samples: int = 1
    permutations: int = 1
    batch: int = 4
    steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    metrics: tuple[str, ...] = (
        "psnr",
        "ssim",
        "mse",
        "motion_psnr",
        "truth_motion_psnr",
        "flow_error",
        "lpips",
        "fvd",
    )
    gap_metric: str = "motion_psnr"
    resamples: int = 2000
    clips: int = 8
    allow_teacher_forced: bool = False
    control: bool = False
    control_temperatures: tuple[float, ...] = (0.0, 0.5, 0.75, 1.0)
    control_top_k: tuple[int, ...] = (0, 16)
    control_metric: str = "motion_mse"
    control_episodes: int | None = 16
    validation: str | None = None
    max_rejected: int = 0

    def __post_init__(self) -> None:
        infer.check_counts(self, least_one=("frames", "num_samples", "batch", "max_episodes", "steps", "resamples"))
        infer.check_counts(self, least_zero=("permutations", "start", "max_rejected", "clips", "temperature", "top_k"))
        known = registry.names("metrics")
        for name in (*self.metrics, self.gap_metric, self.control_metric):
            if name.replace("_", "-") not in known:
                names = [k.replace("-", "_") for k in known]
                raise UserError(f"there is no metric '{name}'{did_you_mean(name, names)}", "worldsim models list metrics")
        if self.gap_metric not in self.metrics:
            every = f"[{', '.join([*self.metrics, self.gap_metric])}]"
            raise UserError(
                f"gap_metric {self.gap_metric} is not among the metrics {', '.join(self.metrics)}", again(metrics=every)
            )
        if self.control and not self.baseline:
            raise ValueError("control = true needs baseline=RUN, the model whose sampling is tuned")


@dataclass
class Material:
    """What is scored: files of predictions, and what is known about how they came about.

    ``forced``: the sentence for a model whose actions have seen the truth; None for an honest one. ``more``: further metrics.
    ``chosen``: how the baseline of ``control`` is drawn.
    """

    files: list[Path]
    baseline: list[Path] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    forced: str | None = None
    control: list[Path] = field(default_factory=list)
    chosen: Control | None = None
    more: tuple[str, ...] = ()

    def pairs(self) -> Iterator[tuple[Prediction, Prediction | None]]:
        """One episode at a time: its prediction, and the baseline's."""
        return ((p, baseline) for p, baseline, _ in self.triples())

    def triples(self) -> Iterator[tuple[Prediction, Prediction | None, Prediction | None]]:
        """One episode at a time: its prediction, the baseline's, and the baseline's at its best temperature."""
        for k, path in enumerate(self.files):
            baseline, control = (load(some[k]) if some else None for some in (self.baseline, self.control))
            yield load(path), baseline, control


def run(config: Config, context: RunContext) -> Result:
    """Imagine (or take what is there), score, and write the page.

    Raises:
        UserError: nothing to score, or model and data do not match.
        PartialResult: more than ``max_rejected`` episodes could not be decoded; the others are scored.
    """
    material = _given(config, context) if config.predictions else _imagined(config, context)
    scorer, repeated, identical = _score(config, context, material)
    table = scorer.table()
    for sentence in scorer.refused.values():
        context.note(sentence)
    summary = summarise(table, context.seed, config.resamples, config.gap_metric, identical)
    alarms = [sentence for sentence in (material.forced, alarm(summary)) if sentence]
    for sentence in alarms:
        shout(sentence)
    for warning in (*alarms, flicker(summary), untested(summary, config.predictions is None)):
        if warning:
            context.note(warning)
    rates = repeated.summary(context.seed, config.resamples)
    more = {
        "repetition": _eval_repeats.as_json(rates),
        "control_choice": material.chosen.to_json() if material.chosen else None,
    }
    scores = scores_json(table, summary, forced=material.forced is not None, **more)
    write_json(context.out / "scores.json", scores)
    facts = Facts(material.facts, alarms, config.clips, forced=material.forced is not None, rates=rates)
    text = publish(context, config, table, summary, facts, material.pairs())
    return _result(config, context, material, scores, text)


def _given(config: Config, context: RunContext) -> Material:
    context.inputs["predictions"] = str(config.predictions)
    files = find(Path(str(config.predictions)))
    if config.baseline:
        raise UserError("baseline needs --model: predictions that are there already have no second model")
    told = {path: marks(path) for path in files}
    forced, known = ([path.stem for path in files if mark in told[path]] for mark in MARKS)
    if forced:
        how = f"teacher-forced, {len(forced)} of {len(files)} episodes"
        _refuse_forced(
            f"what imagined {config.predictions}",
            how,
            config.allow_teacher_forced,
            {},
        )
    if known:
        context.note(
            f"{len(known)} of {len(files)} episodes are training episodes of what imagined them, which may know them by heart: "
            f"{', '.join(known[:5])}{f' and {len(known) - 5} more' if len(known) > 5 else ''}"
        )
    facts = {"predictions": str(config.predictions)}
    return Material(files, facts=facts, forced=FORCED if forced else None)


def _imagined(config: Config, context: RunContext) -> Material:
    """Let the model, and the baseline if there is one, imagine the episodes into ``frames/`` and ``baseline/frames/``."""
    if config.model is None:
        raise UserError(
            "there is nothing to score: name --model RUN or --predictions DIR", "worldsim eval video --model RUN"
        )
    order = infer.order_of(config, reconstruct=True)
    for name, text in (("data", config.data), ("model", config.model), ("baseline", config.baseline)):
        if text and Path(text).exists():
            context.reads(name, Path(text))
    source = open_dataset(order.data)
    try:
        allow = config.allow_teacher_forced
        if config.control:  # before anything is imagined
            _eval_control.validation_part(config.validation, order.data, source)
        studio, agenda, forced = _imagine(order, config.model, source, context.out / "frames", context, allow)
        material = Material(_files(agenda, context.out / "frames"), rejected=agenda.rejected)
        material.facts = _facts(config, studio, source)
        if config.baseline:
            folder = context.out / "baseline" / "frames"
            own = replace(order, permutations=0, reconstruct=False)
            other, _, too = _imagine(own, config.baseline, source, folder, context, allow)
            material.baseline, forced = _files(agenda, folder), forced or too
            if config.control:
                _control(config, own, other, source, agenda, context, material)
        material.forced = FORCED if forced else None
        if isinstance(studio.model, SupportsTokenizer):
            material.more = tuple(name for name in TOKEN_METRICS if name not in config.metrics)
    finally:
        source.close()
    return material


def _control(
    config: Config,
    order: Order,
    baseline: Studio,
    source: EpisodeSource,
    agenda: Agenda,
    context: RunContext,
    material: Material,
) -> None:
    """The baseline at its best temperature and top-k, on the same episodes."""
    search = Search(
        config.control_temperatures,
        config.control_top_k,
        config.control_metric,
        config.validation,
        config.control_episodes,
    )
    chosen = _eval_control.choose(search, order, baseline.model, source, agenda, context)
    best = replace(order, temperature=chosen.temperature, top_k=chosen.top_k)
    studio = Studio(best, baseline.model, source, context.seed, context.note, context.device)
    folder = context.out / _eval_control.FOLDER / "frames"
    _eval_control.imagined(studio, studio.agenda(), folder, "imagine at the best temperature")
    material.control, material.chosen = _files(agenda, folder), chosen
    material.facts |= {"control": chosen.text}


def _imagine(
    order: Order, name: str, source: EpisodeSource, folder: Path, context: RunContext, allow_forced: bool
) -> tuple[Studio, Agenda, bool]:
    """Also: whether the model's latent actions had seen true frames that it imagined, which only ``allow_forced`` lets pass."""
    studio = Studio(order, load_model(name, context.device), source, context.seed, context.note, context.device)
    agenda = studio.agenda()
    forced = studio.forced(agenda)
    if forced is not None:
        _refuse_forced(name, forced, allow_forced, studio.unforced(agenda))
    _eval_control.imagined(studio, agenda, folder, f"imagine with {name}")
    return studio, agenda, forced is not None


def _refuse_forced(who: str, how: str, allowed: bool, otherwise: dict[str, Any]) -> None:
    """
    Args:
        who: what imagined. how: it was told. otherwise: settings under which it is not.

    Raises:
        UserError: it is not ``allowed`` that actions have seen the truth.
    """
    if not allowed:
        raise UserError(
            f"{who} is driven by latent actions that have seen the true frames it would be scored on ({how}): such "
            "scores say nothing about imagining",
            again(**(otherwise or {"allow_teacher_forced": "true"})),
        )


def _files(agenda: Agenda, folder: Path) -> list[Path]:
    files = [folder / f"{agenda.names[planned.episode]}.npz" for planned in agenda.imagined]
    missing = [path for path in files if not path.exists()]
    if missing:
        raise UserError(f"{missing[0]} was not imagined: the two models do not take the same episodes")
    return files


def _facts(config: Config, studio: Studio, source: EpisodeSource) -> dict[str, str]:
    wants = studio.needs
    return {
        "model": str(config.model),
        **({"baseline": config.baseline} if config.baseline else {}),
        "data": f"{config.data} ({source.card.format})",
        "episodes": config.episodes or "held out",
        "camera": studio.spec.camera,
        "given frame": f"{studio.spec.first()} (with up to {studio.spec.history} frames of history)",
        "actions": wants.action_column if wants.action_spec else "ignored by this model",
    }


def _score(config: Config, context: RunContext, material: Material) -> tuple[Scorer, Repeats, bool]:
    """Every episode's scores and repetitions, and whether permuted actions changed not a single pixel anywhere."""
    usable, repeated = [], Repeats()
    for name in (*config.metrics, *material.more):
        missing = shelf.unavailable(name)
        usable += [] if missing else [name]
        if missing:
            context.note(missing)
    scorer = Scorer(usable)
    identical = True
    horizon: int | None = None
    for prediction, baseline, control in material.triples():
        horizon = horizon or prediction.horizon
        if prediction.horizon != horizon:
            raise UserError(f"episode {prediction.episode} has {prediction.horizon} predicted frames, others {horizon}")
        scorer.add(prediction, baseline, control)
        repeated.add(prediction, baseline, control)
        same = prediction.permuted is not None and all(np.array_equal(p, prediction.pred) for p in prediction.permuted)
        identical = identical and same
    return scorer, repeated, identical


def _result(config: Config, context: RunContext, material: Material, scores: dict[str, Any], text: str) -> Result:
    gap = scores["permutation"] or {}
    result = Result(
        metrics={
            "episodes": len(scores["episodes"]),
            "horizon": scores["horizon"],
            **{row: {name: cell["mean"] for name, cell in by_name.items()} for row, by_name in scores["summary"].items()},
            **{f"{row}_sets": values for row, values in scores["sets"].items()},
            "permutation_gap": gap.get("gap"),
            "permutation_p": gap.get("p"),
            "permutation_p_mean": gap.get("p_mean"),
            "follows_actions": gap.get("follows_actions"),
            **({"teacher_forced": True} if material.forced else {}),
            **{key: scores[key] for key in ("repetition", "control_choice") if key in scores},
            "rejected": material.rejected,
        },
        summary=text,
        next=["open", context.out / "report" / "index.html"],
    )
    if len(material.rejected) > config.max_rejected:
        first = material.rejected[0]
        raise PartialResult(
            f"{len(material.rejected)} episodes cannot be read, the first is {first['episode']}: {first['reason']}",
            again(max_rejected=len(material.rejected), out=f"{context.out}-2"),
            result,
        )
    return result


def demo_summary(scores: dict[str, Any]) -> dict[str, Any]:
    """From ``scores.json`` to what ``runs/demo/summary.json`` must hold about scores.

    ``episodes``, ``horizon``, ``permutation_gap`` (dB), ``permutation_p``, and for each of ``tuned`` (the model), ``base``
    (the baseline), ``copy_last`` and ``ceiling``: ``psnr``, ``ssim``, ``motion_psnr``.
    """
    rows = {
        name: {metric: scores["summary"][row][metric]["mean"] for metric in DEMO_METRICS}
        for name, row in DEMO_ROWS.items()
        if row in scores["summary"]
    }
    gap = scores["permutation"] or {}
    return {
        "episodes": len(scores["episodes"]),
        "horizon": scores["horizon"],
        **rows,
        "permutation_gap": gap.get("gap"),
        "permutation_p": gap.get("p"),
    }


def plan(config: Config, seed: int = 0) -> dict[str, Any]:
    """What would be read and scored, without loading a model or decoding a frame."""
    if config.predictions:
        return {"predictions": config.predictions, "episodes": len(find(Path(config.predictions)))}
    values = {key: getattr(config, key) for key in infer.Config.__dataclass_fields__ if hasattr(config, key)}
    return {**infer.plan(infer.Config(**{**values, "model": config.model or "copy"})), "metrics": list(config.metrics)}
