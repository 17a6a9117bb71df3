"""From scores to the page of ``eval video``: what it says and which clips it shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from worldsim import __version__
from worldsim.commands import _eval_repeats
from worldsim.core import registry
from worldsim.core.config import to_yaml
from worldsim.core.runs import RunContext
from worldsim.data.predictions import Prediction, file_names
from worldsim.metrics.scoring import (
    BASELINE,
    BEST,
    CEILING,
    CONTROL,
    COPY,
    MODEL,
    PERMUTED,
    ROWS,
    SHIFTED,
    Summary,
    Table,
)
from worldsim.report import trace
from worldsim.report.curves import Line
from worldsim.report.page import (
    Cell,
    Chart,
    Column,
    Page,
    Row,
    Shown,
    Tile,
    contact_sheet,
    film_episode,
    number,
    render,
    table_text,
)
from worldsim.report.statistics import Interval, interval
from worldsim.report.video import write_png

LABELS = {
    MODEL: "model",
    BEST: "best of its samples",
    BASELINE: "baseline",
    CONTROL: "baseline at its best temperature",
    COPY: "copy of the given frame",
    CEILING: "codec ceiling",
    SHIFTED: "truth, one frame late",
    PERMUTED: "other episode's actions",
}
OTHER = "other actions"
"""Label of the film that was imagined with another episode's actions."""
CONTACT, CONTACT_EPISODES = "contact.png", 3
DEFINITIONS = (
    (
        "frames",
        "Only predicted frames are scored, at the model's resolution, as uint8 RGB before any video compression; the given "
        "frame never counts.",
    ),
    (
        "averages",
        "Per frame, then the mean over an episode's frames, then the mean over episodes. Squared errors are never pooled.",
    ),
    (
        "intervals",
        "95 % percentile bootstrap over episodes: frames of one episode are not independent, episodes are.",
    ),
    (
        "motion_psnr",
        "PSNR over the pixels where the truth or the prediction differs from the given frame by more than 10/255 (any "
        "channel) at that step, dilated by 2 pixels (5 x 5). A step without such pixels has no value and is left out.",
    ),
    (
        "truth_motion_psnr",
        "The same over the pixels where the truth alone moved. motion_psnr can be raised by flicker everywhere, this one by "
        "nothing but getting the motion right; it does not see invented motion, which motion_psnr does.",
    ),
    ("psnr, mse", "RGB, all pixels; PSNR is capped at 100 dB."),
    (
        "recompute",
        "frames/*.npz beside this report hold every prediction, the truth and the actions; `python scripts/recompute.py RUN` "
        "writes all formulas out a second time and compares.",
    ),
    ("ssim", "Gaussian window 11, sigma 1.5, population covariance, per RGB channel; equals scikit-image."),
    ("flow_error", "Mean end-point error between Farneback flows given → truth and given → prediction, in pixels."),
    (
        "actions",
        "The permutation gap is own minus other: every episode is imagined twice from the same frame and the same noise, "
        "with its own actions and with those of another episode (a random cycle, so nobody keeps its own). The sign test "
        "and the permutation test of the mean (signs flipped per episode) are one-sided over episodes. A model follows its actions "
        "when the whole interval of the gap lies above 0 and the permutation test's p is below 0.05.",
    ),
)


@dataclass(frozen=True)
class Facts:
    """What is known beside the scores: where predictions come from, alarms, how many episodes to show, and whether the
    model's actions have seen the truth. ``rates``: how often a token model repeats itself (``_eval_repeats``)."""

    origin: dict[str, str]
    alarms: list[str]
    clips: int
    forced: bool = False
    rates: dict[str, Any] = field(default_factory=dict)


def publish(
    context: RunContext,
    config: Any,
    table: Table,
    summary: Summary,
    facts: Facts,
    pairs: Iterator[tuple[Prediction, Prediction | None]],
) -> str:
    """Write ``report/``; returns the summary table as text for the terminal."""
    folder = context.out / "report"
    columns = [_column(name) for name in table.scores[MODEL]]
    rows = [_row(key, table, summary, facts.forced) for key in ROWS if key in table.scores]
    shown, names, shape = _shown(folder, facts.clips, table, pairs)
    episodes, horizon = next(iter(table.scores[MODEL].values())).shape
    page = Page(
        title=f"What {'/'.join(Path(facts.origin.get('model', 'the model')).parts[-2:])} imagines",
        subtitle=f"{episodes} episodes, {horizon} frames imagined after the given one, {shape}",
        alarms=facts.alarms,
        tiles=[*_tiles(summary), *([repeated] if (repeated := _eval_repeats.tile(facts.rates)) else [])],
        columns=columns,
        rows=rows,
        curves={c.name: _lines(c.name, table, context.seed) for c in columns},
        shown=shown,
        shown_text=f"The first {len(shown)} of {episodes} episodes in the dataset's order; none was picked.",
        notes=context.notes,
        definitions=(*DEFINITIONS, *([_eval_repeats.DEFINITION] if facts.rates else [])),
        config=to_yaml(config),
        charts=_gap_chart(summary),
        action_names=names,
        contact=CONTACT if (folder / CONTACT).exists() else None,
        provenance=[*facts.origin.items(), ("seed", str(context.seed)), *_set_scores(table), ("worldsim", __version__)],
    )
    render(page, folder)
    return table_text(columns, rows)


def _column(name: str) -> Column:
    card = registry.card("metrics", name) or {}
    return Column(name, card["title"], card["unit"], card["better"])


def _row(key: str, table: Table, summary: Summary, forced: bool) -> Row:
    cells = {name: Cell(i.mean, i.low, i.high, table.undefined(key, name)) for name, i in summary.rows[key].items()}
    label = f"{LABELS[key]} (TEACHER-FORCED)" if forced and key in (MODEL, PERMUTED) else LABELS[key]
    return Row(key, label, ROWS[key], cells)


def _gap_chart(summary: Summary) -> list[Chart]:
    """How the permutation gap grows or fades over the predicted frames."""
    if summary.gap is None:
        return []
    mean, low, high = (np.array([getattr(one, key) for one in summary.gap_by_frame]) for key in ("mean", "low", "high"))
    lines = [Line(MODEL, "own minus other actions", mean, low, high), Line(COPY, "no difference", np.zeros(len(mean)))]
    text = f"{summary.gap_metric} with own minus with another episode's actions; 0 = the actions change nothing"
    return [Chart("permutation gap ↑", text, _column(summary.gap_metric).unit, lines)]


def _lines(name: str, table: Table, seed: int) -> list[Line]:
    out = []
    for key in ROWS:
        if key not in table.scores:
            continue
        values, low, high = table.per_horizon(key, name), None, None
        if key == MODEL and len(table.episodes) > 1:
            bounds = [interval(column, seed, 500) for column in table.scores[key][name].T]
            low, high = np.array([b.low for b in bounds]), np.array([b.high for b in bounds])
        out.append(Line(key, LABELS[key], values, low, high))
    return out


def _tiles(summary: Summary) -> list[Tile]:
    out = [_versus_copy(summary, name) for name in ("motion_psnr", "psnr") if name in summary.over_copy]
    gap = summary.gap
    if gap is None:
        text = "imagine with permutations=1 or more to find out whether the actions matter"
        out.append(Tile("Follows its actions", "not measured", text))
    else:
        unit = _column(summary.gap_metric).unit
        text = (
            f"better with own than with another episode's actions {_span(gap.interval)}; {gap.wins} of "
            f"{gap.wins + gap.losses + gap.ties} episodes, sign test p = {gap.p:.2g}, "
            f"permutation test p = {gap.p_mean:.2g}"
        )
        value = "–" if np.isnan(gap.interval.mean) else f"{gap.interval.mean:+.2f} {unit}"
        out.append(Tile("Follows its actions", value, text, "good" if gap.follows else "bad"))
    if CEILING in summary.rows and "motion_psnr" in summary.rows[CEILING]:
        ceiling = summary.rows[CEILING]["motion_psnr"]
        text = "motion PSNR of the truth through the model's codec"
        out.append(Tile("Codec ceiling", f"{number(ceiling.mean)} dB", text))
    return out


def _versus_copy(summary: Summary, name: str) -> Tile:
    own, over = summary.rows[MODEL][name], summary.over_copy[name]
    tone = "good" if over.low > 0 else "bad" if over.high < 0 else "plain"
    title = {"motion_psnr": "PSNR where something moves", "psnr": "PSNR of the full frame"}[name]
    value = "–" if np.isnan(own.mean) else f"{own.mean:.2f} dB"
    gain = "no motion in any clip" if np.isnan(over.mean) else f"{over.mean:+.2f} dB over repeating the given frame"
    return Tile(title, value, f"{gain} {_span(over)}", tone)


def _span(i: Interval) -> str:
    return "" if np.isnan(i.low) else f"[{i.low:+.2f} … {i.high:+.2f}]"


def _set_scores(table: Table) -> list[tuple[str, str]]:
    return [
        (f"{name}, {LABELS[row]}", f"{value:.2f} (N = {len(table.episodes)})")
        for row, by_name in table.sets.items()
        for name, value in by_name.items()
    ]


def _shown(
    folder: Path, count: int, table: Table, pairs: Iterator[tuple[Prediction, Prediction | None]]
) -> tuple[list[Shown], list[str], str]:
    """Films, traces and strips of the first ``count`` episodes; names of the traces' lines; size and rate in words."""
    names, chosen = file_names(table.episodes), list(islice(pairs, max(count, 1)))
    first = chosen[0][0]
    shape = f"{first.given.shape[0]} x {first.given.shape[1]} pixels at {first.fps:g} fps"
    chosen, out = chosen[:count], []
    sheet: list[dict[str, np.ndarray]] = []
    traces = _Traces([p for p, _ in chosen])
    for k, (p, baseline) in enumerate(chosen):
        films, picture = film_episode(folder, names[p.episode], _films(p, baseline), p.fps)
        drawn = {label: svg for label in films if (svg := traces.of(p, label))}
        out.append(Shown(p.episode, _words(k, p, table), films, picture, drawn, p.fps, p.horizon))
        if len(sheet) < CONTACT_EPISODES and p.given.shape == first.given.shape:
            sheet.append(_contact(p, baseline))
    if sheet and not (folder / CONTACT).exists():
        write_png(folder / CONTACT, contact_sheet(sheet))
    return out, traces.names, shape


class _Traces:
    """The actions of all clips that a page shows, on one scale."""

    def __init__(self, shown: list[Prediction]) -> None:
        rows = [p.actions for p in shown] + [p.permuted_actions[0] for p in shown if p.permuted_actions is not None]
        self.usable = bool(rows) and len({part.shape[-1] for part in rows}) == 1 and rows[0].shape[-1] > 0
        self.names: list[str] = []
        if self.usable:
            self.dims, (self.low, self.high) = trace.drawn(rows), trace.ranges(rows)
            named = shown[0].action_names
            self.names = [named[d] if named else f"action {d}" for d in self.dims]

    def of(self, p: Prediction, label: str) -> str | None:
        """The trace under the film ``label``: the actions that it was made with; under the truth those that were recorded."""
        if not self.usable:
            return None
        rows = p.permuted_actions[0] if label == OTHER and p.permuted_actions is not None else p.actions
        return trace.trace(rows, self.dims, self.low, self.high, f"actions of {label}")


def _contact(p: Prediction, baseline: Prediction | None) -> dict[str, np.ndarray]:
    out = _films(p, baseline)
    out["copy"] = np.repeat(p.given[None], p.horizon + 1, axis=0)
    return out


def _films(p: Prediction, baseline: Prediction | None) -> dict[str, np.ndarray]:
    assert p.truth is not None
    out = {"truth": p.truth, "prediction": p.pred}
    if baseline is not None:
        out["baseline"] = baseline.pred
    if p.permuted is not None:
        out[OTHER] = p.permuted[0]
    return out


def _words(k: int, p: Prediction, table: Table) -> str:
    """The task, and this episode's own numbers."""
    name = "motion_psnr" if "motion_psnr" in table.scores[MODEL] else next(iter(table.scores[MODEL]))
    mine, copied = (table.per_episode(row, name)[k] for row in (MODEL, COPY))
    numbers = f"{name} {number(mine)}, copy {number(copied)}"
    return f"{p.instruction} · {numbers}" if p.instruction else numbers
