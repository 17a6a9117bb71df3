"""Scores of one imagined clip, of the reference rows beside it, and tables of them over episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from worldsim import metrics
from worldsim.core import registry
from worldsim.core.errors import UserError
from worldsim.data.predictions import Prediction
from worldsim.report.statistics import Gap, Interval, interval, permutation_gap

MODEL, BASELINE, COPY, CEILING, SHIFTED, PERMUTED = "model", "baseline", "copy_last", "ceiling", "shifted", "permuted"
BEST, CONTROL = "best_of_n", "control"
LEAST_GAP_DB = 0.1
"""A permutation gap below this is no following of actions, however certain it is: no eye sees it."""
ROWS = {
    MODEL: "the model, with each episode's own actions",
    BEST: "the best of the model's samples of each episode, chosen by the truth, for every score anew",
    BASELINE: "the model it is compared with",
    CONTROL: "that model at its best temperature and top-k, chosen on other episodes",
    COPY: "the last given frame, repeated",
    CEILING: "the truth through the model's codec: no model behind this codec can score higher",
    SHIFTED: "the truth, one frame late: what a slip between frames and actions would score",
    PERMUTED: "the model, with another episode's actions",
}


def rows_of(
    p: Prediction, baseline: Prediction | None = None, control: Prediction | None = None
) -> dict[str, list[np.ndarray]]:
    """Row name -> candidate futures, each uint8 ``[n, H, W, 3]``; several where there are samples or permutations."""
    out = {MODEL: [sample[1:] for sample in p.samples]}
    for row, other in ((BASELINE, baseline), (CONTROL, control)):
        if other is not None:
            out[row] = [sample[1:] for sample in other.samples]
    out[COPY] = [np.repeat(p.given[None], p.horizon, axis=0)]
    if p.reconstruction is not None:
        out[CEILING] = [p.reconstruction[1:]]
    if p.truth is not None:
        out[SHIFTED] = [p.truth[:-1]]
    if p.permuted is not None:
        out[PERMUTED] = [future[1:] for future in p.permuted]
    return out


@dataclass
class Table:
    """Scores of many episodes.

    Attributes:
        episodes: ids, in order.
        scores: row -> metric -> ``[E, n]`` per episode and predicted frame (samples and permutations averaged); NaN where
            undefined.
        sets: row -> set metric -> value, over all episodes.
    """

    episodes: list[str] = field(default_factory=list)
    scores: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    sets: dict[str, dict[str, float]] = field(default_factory=dict)

    def per_episode(self, row: str, name: str) -> np.ndarray:
        """``[E]``: each episode's mean over the frames that have a value; NaN where none has."""
        return mean_where_defined(self.scores[row][name], axis=1)

    def per_horizon(self, row: str, name: str) -> np.ndarray:
        """``[n]``: each predicted frame's mean over the episodes that have a value."""
        return mean_where_defined(self.scores[row][name], axis=0)

    def undefined(self, row: str, name: str) -> int:
        """How many frames had no value (for ``motion_psnr``: nothing moved) and were left out."""
        return int(np.isnan(self.scores[row][name]).sum())


def mean_where_defined(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean without NaN; NaN where nothing is left, without a warning."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=axis)
    total = np.where(defined, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def best(values: np.ndarray, sign: int) -> np.ndarray:
    """The sample with the best mean over the frames that have a value: ``[N, n]`` -> its ``[n]``.

    Args:
        sign: 1 where higher is better, -1 where lower is.
    """
    means = sign * mean_where_defined(values, axis=1)
    return values[int(np.argmax(np.where(np.isnan(means), -np.inf, means)))]


class Scorer:
    """Adds episodes one at a time, so that only one episode's pixels are in memory; set metrics keep theirs.

    Args:
        names: metrics to compute, registered names. A metric whose weights are missing must be left out by the caller.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.frame = {name: metrics.load(name) for name in names if metrics.scope(name) == "frame"}
        self.set = {name: metrics.load(name) for name in names if metrics.scope(name) == "set"}
        self.episodes: list[str] = []
        self.collected: dict[str, dict[str, list[np.ndarray]]] = {}
        self.clips: dict[str, list[np.ndarray]] = {}
        self.truths: list[np.ndarray] = []
        self.refused: dict[str, str] = {}

    def add(
        self, p: Prediction, baseline: Prediction | None = None, control: Prediction | None = None
    ) -> dict[str, dict[str, np.ndarray]]:
        """Score one episode: row -> metric -> ``[n]``."""
        if p.truth is None:
            raise UserError(f"episode {p.episode} was imagined without a truth to compare with")
        for other in (baseline, control):
            if other is not None and (other.truth is None or not np.array_equal(other.truth, p.truth)):
                raise UserError(
                    f"the baseline imagines other frames of episode {p.episode} than the model: "
                    "their camera, size or rate differ",
                    "worldsim eval video DATA --model RUN",
                )
        truth = p.truth[1:]
        out: dict[str, dict[str, np.ndarray]] = {}
        for row, futures in rows_of(p, baseline, control).items():
            for name, metric in self.frame.items():
                each = np.stack([metric(f, truth, p.given) for f in futures])
                out.setdefault(row, {})[name] = mean_where_defined(each, axis=0)
                if row == MODEL and len(futures) > 1:
                    out.setdefault(BEST, {})[name] = best(each, _sign(name))
            if self.set:
                self.clips.setdefault(row, []).append(futures[0])
        for row, by_name in out.items():
            for name, values in by_name.items():
                self.collected.setdefault(row, {}).setdefault(name, []).append(values)
        self.episodes.append(p.episode)
        if self.set:
            self.truths.append(truth)
        return out

    def table(self) -> Table:
        """All of it. A row that not every episode has (a missing codec, no partner) is left out."""
        count = len(self.episodes)
        scores = {
            row: {name: np.stack(values) for name, values in by_name.items()}
            for row, by_name in self.collected.items()
            if all(len(values) == count for values in by_name.values())
        }
        return Table(list(self.episodes), scores, self._sets(count))

    def _sets(self, count: int) -> dict[str, dict[str, float]]:
        """Set metrics per row; one that cannot be computed for these clips (too short) says why in ``refused``."""
        out: dict[str, dict[str, float]] = {}
        for row, clips in self.clips.items():
            for name, metric in self.set.items():
                if len(clips) == count and name not in self.refused:
                    try:
                        out.setdefault(row, {})[name] = metric(clips, self.truths)
                    except UserError as error:
                        self.refused[name] = error.sentence
        return out


@dataclass(frozen=True)
class Summary:
    """A table's numbers with intervals over episodes.

    Attributes:
        rows: row -> metric -> interval of the episodes' means.
        over_copy: metric -> interval of the paired difference model minus copy, positive where the model is better.
        gap: own against permuted actions by ``gap_metric``; None where no permutation was imagined.
        gap_by_frame: the same difference at each predicted frame, n intervals.
        identical: whether every permuted future is the very same pixels as the model's own.
    """

    rows: dict[str, dict[str, Interval]]
    over_copy: dict[str, Interval]
    gap: Gap | None
    gap_metric: str
    identical: bool = False
    gap_by_frame: tuple[Interval, ...] = ()


def summarise(table: Table, seed: int, resamples: int, gap_metric: str, identical: bool) -> Summary:
    """Bootstrap every number of the table, and test the permutation gap."""
    rows = {
        row: {name: interval(table.per_episode(row, name), seed, resamples) for name in by_name}
        for row, by_name in table.scores.items()
    }
    over_copy = {
        name: interval(_sign(name) * (table.per_episode(MODEL, name) - table.per_episode(COPY, name)), seed, resamples)
        for name in table.scores.get(MODEL, {})
    }
    gap: Gap | None = None
    by_frame: tuple[Interval, ...] = ()
    if PERMUTED in table.scores and gap_metric in table.scores[PERMUTED]:
        own, other = (table.per_episode(row, gap_metric) for row in (MODEL, PERMUTED))
        gap = permutation_gap(own, other, seed, resamples, _sign(gap_metric), _least(gap_metric))
        frames = _sign(gap_metric) * (table.scores[MODEL][gap_metric] - table.scores[PERMUTED][gap_metric])
        by_frame = tuple(interval(values, seed, resamples) for values in frames.T)
    return Summary(rows, over_copy, gap, gap_metric, identical, by_frame)


def _sign(name: str) -> int:
    return 1 if (registry.card("metrics", name) or {}).get("better", "higher") == "higher" else -1


def _least(name: str) -> float:
    """The smallest permutation gap worth speaking of; any, for scores that are no decibels."""
    return LEAST_GAP_DB if (registry.card("metrics", name) or {}).get("unit") == "dB" else 0.0
