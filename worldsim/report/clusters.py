"""Bootstrap over episodes of averages that are taken per sample: an episode counts by how many samples it has.

Samples of one episode are not independent, episodes are; so whole episodes are drawn, each with its sum and its number of
samples, and an average, a ratio or a difference is computed anew from every draw. What is compared is drawn together (paired).
Percentiles of a bootstrap are too sure when there are few episodes; they are taken as far out as Student's t asks for.
# source: Cameron, Gelbach & Miller 2008, Bootstrap-based improvements for inference with clustered errors (pairs bootstrap);
# Hesterberg 2015, What teachers should know about the bootstrap, American Statistician 69:371 (expanded percentiles)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.special import ndtr, stdtrit

from worldsim.report.statistics import LEAST_EPISODES, LEVEL


@dataclass(frozen=True)
class Spread:
    """A number with its bootstrap interval; arrays of one shape, or floats of shape ``[]``. NaN where nothing was counted.

    ``count``: episodes with at least one sample anywhere.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: int

    @property
    def enough(self) -> bool:
        """Whether there are episodes enough to claim anything."""
        return self.count >= LEAST_EPISODES

    def to_json(self) -> dict[str, object]:
        """Plain numbers; null where NaN."""
        values: dict[str, object] = {key: plain(getattr(self, key)) for key in ("mean", "low", "high")}
        return {**values, "episodes": self.count}


def plain(value: object) -> object:
    """Arrays as (nested) lists, NaN and infinities as None, for JSON."""
    array = np.asarray(value, np.float64)
    if array.ndim:
        return [plain(row) for row in array]
    return float(array) if np.isfinite(array) else None


@dataclass(frozen=True)
class Draws:
    """Which episodes each resample holds: counts ``[R, E]``. All numbers of one report share one, so all are paired."""

    counts: np.ndarray

    @classmethod
    def of(cls, episodes: int, seed: int = 0, resamples: int = 2000) -> Draws:
        """
        Args:
            episodes: E >= 0. seed: the same seed gives the same draws.
        """
        rng = np.random.default_rng(seed)
        if episodes == 0:
            return cls(np.zeros((resamples, 0)))
        return cls(rng.multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples).astype(np.float64))

    def pooled(self, sums: np.ndarray, samples: np.ndarray) -> Spread:
        """The mean per sample.

        Args:
            sums: ``[E, …]`` of a value over an episode's samples. samples: ``[E]`` or ``[E, …]``, how many these are.
        """
        sums, samples = _aligned(sums, samples)
        return self._spread(_over(sums.sum(0), samples.sum(0)), _over(self._sum(sums), self._sum(samples)), samples)

    def ratio(self, sums: np.ndarray, base: np.ndarray) -> Spread:
        """``sums / base`` of two values on the same samples, both ``[E, …]`` sums over an episode's samples."""
        sums, base = _aligned(sums, base)
        return self._spread(_over(sums.sum(0), base.sum(0)), _over(self._sum(sums), self._sum(base)), np.abs(base))

    def difference(self, sums: np.ndarray, base: np.ndarray, samples: np.ndarray) -> Spread:
        """The mean per sample of ``sums`` minus that of ``base``, on the same samples."""
        return self.pooled(np.asarray(sums, np.float64) - np.asarray(base, np.float64), samples)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """``[E, …] -> [R, …]``: the sum over each draw's episodes."""
        return np.tensordot(self.counts, values, axes=1)

    def _spread(self, value: np.ndarray, drawn: np.ndarray, weight: np.ndarray) -> Spread:
        """Percentile interval; draws in which nothing was counted are left out."""
        count = int((weight.sum(axis=tuple(range(1, weight.ndim))) > 0).sum())
        if not count:
            nothing = np.full_like(value, np.nan)
            return Spread(nothing, nothing, nothing, 0)
        drawn = np.where(np.isnan(value), 0.0, drawn)  # an entry that no episode has stays NaN below, without a warning
        tail = 100 * expanded_tail(count)
        low, high = np.nanpercentile(drawn, [tail, 100 - tail], axis=0)
        undefined = np.isnan(value)
        return Spread(value, np.where(undefined, np.nan, low), np.where(undefined, np.nan, high), count)


def expanded_tail(episodes: int) -> float:
    """The share of draws outside of each end of the interval: 2.5 % for many episodes, less for few; 0 for one."""
    if episodes < 2:
        return 0.0
    return float(ndtr(sqrt(episodes / (episodes - 1)) * stdtrit(episodes - 1, (1 - LEVEL) / 2)))


def _aligned(sums: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both float64 and of one shape: ``samples`` ``[E]`` is repeated over the further axes."""
    sums, samples = np.asarray(sums, np.float64), np.asarray(samples, np.float64)
    if samples.ndim < sums.ndim:
        samples = samples.reshape(*samples.shape, *(1,) * (sums.ndim - samples.ndim))
    return sums, np.broadcast_to(samples, sums.shape)


def _over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Their quotient; NaN where the denominator is 0."""
    safe = np.where(denominator == 0, 1.0, denominator)
    return np.where(denominator == 0, np.nan, numerator / safe)
