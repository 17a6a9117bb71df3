"""How often something succeeded: rates from few trials, their differences, and how well one table of rates ranks another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from worldsim.report.statistics import LEVEL


@dataclass(frozen=True)
class Rate:
    """Successes out of trials with Wilson's interval; all of ``rate, low, high`` lie in 0..1, NaN without a trial."""

    successes: int
    trials: int
    rate: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | int | None]:
        numbers = {"rate": self.rate, "low": self.low, "high": self.high}
        plain = {key: None if math.isnan(value) else value for key, value in numbers.items()}
        return {"successes": self.successes, "trials": self.trials, **plain}


def wilson(successes: int, trials: int, level: float = LEVEL) -> Rate:
    """Wilson's score interval, without continuity correction: the rates that the score test does not reject.

    Unlike ``p ± 1.96 · s`` it keeps its level for rates near 0 and 1 and for few trials, and never leaves 0..1.
    # source: Wilson 1927, JASA 22:209; Newcombe 1998, Statistics in Medicine 17:857, method 3

    Args:
        successes: 0 <= successes <= trials. level: of confidence, 0..1.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    if trials == 0:
        return Rate(0, 0, math.nan, math.nan, math.nan)
    z2, p = _z(level) ** 2, successes / trials
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2) / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == trials else min(1.0, middle + half)
    return Rate(successes, trials, p, low, high)


def _z(level: float) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2)


@dataclass(frozen=True)
class Difference:
    """Two policies on the same seeds: rate of the first minus rate of the second.

    Attributes:
        difference, low, high: -1..1. only_first, only_second: seeds that just one of them solved.
        p: exact McNemar test, two-sided: how likely so lopsided a split of those seeds is by chance.
    """

    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p: float

    def to_json(self) -> dict[str, float | int]:
        return dict(vars(self))


def paired(first: Sequence[bool], second: Sequence[bool], level: float = LEVEL) -> Difference:
    """The difference of two rates over the same trials, with an interval that knows that they are paired.

    # source: Newcombe 1998, Statistics in Medicine 17:2635, method 10 (Wilson's limits of both, joined by their correlation);
    # McNemar 1947 for the test

    Args:
        first, second: one truth value per trial, in the same order; at least one.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} trials are not pairs")
    both = sum(a and b for a, b in zip(first, second))
    one, other = (sum(a and not b for a, b in zip(x, y)) for x, y in ((first, second), (second, first)))
    n, neither = len(first), len(first) - both - one - other
    mine, theirs = wilson(both + one, n, level), wilson(both + other, n, level)
    phi = _correlation(both, one, other, neither)
    gap = mine.rate - theirs.rate
    down = _joined(mine.rate - mine.low, theirs.high - theirs.rate, phi)
    up = _joined(mine.high - mine.rate, theirs.rate - theirs.low, phi)
    return Difference(gap, max(-1.0, gap - down), min(1.0, gap + up), one, other, mcnemar(one, other))


def _joined(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))


def _correlation(both: int, one: int, other: int, neither: int) -> float:
    """Of the two answers; a positive one is corrected for continuity. 0 where one policy always answers the same."""
    sides = (both + one) * (other + neither) * (both + other) * (one + neither)
    if sides == 0:
        return 0.0
    excess: float = both * neither - one * other
    if excess > 0:
        excess = max(excess - (both + one + other + neither) / 2, 0.0)
    return excess / math.sqrt(sides)


def mcnemar(one: int, other: int) -> float:
    """Exact, two-sided; 1 where no trial tells the two apart."""
    throws, most = one + other, max(one, other)
    tail = sum(math.comb(throws, k) for k in range(most, throws + 1)) / 2**throws
    return min(1.0, 2 * tail)


@dataclass(frozen=True)
class Agreement:
    """How a dream's rates stand to a simulator's, over the policies that both have tried.

    Attributes:
        policies: how many. pearson: of the rates, NaN where fewer than two or all rates of one side are equal.
        violations: pairs that the two put in opposite order. pairs: all pairs.
        mean_maximum: mean over policies of the largest true gap among pairs put in the wrong order, 0..1.
    """

    policies: int
    pearson: float
    violations: int
    pairs: int
    mean_maximum: float

    def to_json(self) -> dict[str, float | int | None]:
        return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in vars(self).items()}


def agreement(imagined: Sequence[float], true: Sequence[float]) -> Agreement:
    """
    # source: Li et al. 2024, SIMPLER, arXiv 2405.05941 (Pearson correlation and mean maximum rank violation)

    Args:
        imagined, true: rates of the same policies in the same order.
    """
    dream, truth = np.asarray(imagined, np.float64), np.asarray(true, np.float64)
    n = len(dream)
    gaps, order = truth[:, None] - truth[None], dream[:, None] - dream[None]
    wrong = gaps * order < 0
    largest = np.where((order < 0) != (gaps < 0), np.abs(gaps), 0.0).max(axis=1) if n else np.zeros(0)
    flat = n < 2 or np.ptp(dream) == 0 or np.ptp(truth) == 0
    pearson = math.nan if flat else float(np.corrcoef(dream, truth)[0, 1])
    return Agreement(n, pearson, int(wrong.sum()) // 2, n * (n - 1) // 2, float(largest.mean()) if n else 0.0)
