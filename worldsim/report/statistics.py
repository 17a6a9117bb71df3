"""What may be claimed from a few episodes: bootstrap intervals, and exact tests of the action-permutation gap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
LEAST_EPISODES = 5
"""Fewer cannot reject chance at 5 %: with four, all four wins have p = 1/16."""
EXACT = 16
"""Up to so many episodes every one of the 2^E sign patterns is tried; beyond, ``DRAWS`` random ones."""
DRAWS = 20000


@dataclass(frozen=True)
class Interval:
    """A mean over episodes with its bootstrap interval.

    Attributes:
        mean, low, high: in the values' unit; NaN when no episode has a value.
        count: episodes with a value. missing: episodes without one (NaN), left out.
    """

    mean: float
    low: float
    high: float
    count: int
    missing: int


def interval(values: np.ndarray, seed: int = 0, resamples: int = 2000, level: float = LEVEL) -> Interval:
    """Percentile bootstrap of the mean over episodes: they are the independent unit, not frames.

    Args:
        values: ``[E]``, one per episode; NaN ones are left out and counted.
        resamples: draws with replacement. The same seed gives the same interval.
    """
    kept = np.asarray(values, np.float64)
    kept = kept[~np.isnan(kept)]
    missing = len(values) - len(kept)
    if not len(kept):
        return Interval(np.nan, np.nan, np.nan, 0, missing)
    draws = np.random.default_rng(seed).integers(0, len(kept), (resamples, len(kept)))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(kept[draws].mean(axis=1), [tail, 100 - tail])
    return Interval(float(kept.mean()), float(low), float(high), len(kept), missing)


@dataclass(frozen=True)
class Gap:
    """How much better an episode is imagined with its own actions than with another episode's.

    Attributes:
        interval: of the difference own minus other, in the score's unit; positive: actions are followed.
        wins, losses, ties: episodes.
        p: one-sided sign test (ties left out): how likely so many wins are if actions made no difference.
        p_mean: one-sided paired permutation test of the mean gap, see :func:`flip_test`.
        least: mean gap from which on it is worth speaking of, whatever the tests say.
    """

    interval: Interval
    wins: int
    losses: int
    ties: int
    p: float
    p_mean: float
    least: float = 0.0

    @property
    def certain(self) -> bool:
        """Whether own actions are better at all: the whole interval lies above 0, and chance does not explain the mean
        (``p_mean`` below 5 %, which fewer than five episodes never reach)."""
        return self.interval.low > 0 and self.p_mean < 1 - LEVEL

    @property
    def follows(self) -> bool:
        """Whether the model may be said to follow its actions: certainly, and by enough for an eye to see."""
        return self.certain and self.interval.mean >= self.least

    @property
    def enough(self) -> bool:
        """Whether there are episodes enough to say anything."""
        return self.interval.count >= LEAST_EPISODES


def permutation_gap(
    own: np.ndarray, other: np.ndarray, seed: int = 0, resamples: int = 2000, sign: int = 1, least: float = 0.0
) -> Gap:
    """Compare each episode's score with its own actions to the one with permuted actions.

    Args:
        own: ``[E]`` scores. other: ``[E]``, or ``[P, E]`` for several permutations, which are averaged first.
        sign: 1 where higher scores are better, -1 where lower ones are.
        least: see :class:`Gap`.
    """
    other = np.asarray(other, np.float64)
    if other.ndim == 2:
        other = other.mean(axis=0)
    gap = sign * (np.asarray(own, np.float64) - other)
    kept = gap[~np.isnan(gap)]
    wins, losses = int((kept > 0).sum()), int((kept < 0).sum())
    ties = len(kept) - wins - losses
    return Gap(interval(gap, seed, resamples), wins, losses, ties, sign_test(wins, losses), flip_test(kept, seed), least)


def sign_test(wins: int, losses: int) -> float:
    """One-sided: the chance of at least ``wins`` heads in ``wins + losses`` fair throws, exact. 1 without any throw."""
    throws = wins + losses
    return sum(math.comb(throws, k) for k in range(wins, throws + 1)) / 2**throws


def flip_test(gaps: np.ndarray, seed: int = 0) -> float:
    """One-sided paired permutation test: how often is the mean as large as it is when each gap's sign is drawn by a coin?

    Swapping own and other actions of an episode flips its gap; if actions made no difference, every pattern of flips would be
    as likely. Exact up to 16 episodes, beyond that from 20,000 seeded draws (the observed pattern counted in). 1 without any.
    # source: Fisher 1935, The Design of Experiments, §21; Phipson & Smyth 2010 for counting the observed one
    """
    gaps = np.asarray(gaps, np.float64)
    if not len(gaps) or not gaps.any():
        return 1.0
    exact = len(gaps) <= EXACT
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(gaps))[:, None] >> np.arange(len(gaps))) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (DRAWS, len(gaps)))
    slack = 1e-12 * np.abs(gaps).sum()  # the observed pattern counts itself, whatever the order of the sum
    reached = int((signs @ gaps >= gaps.sum() - slack).sum())
    return reached / len(signs) if exact else (reached + 1) / (DRAWS + 1)
