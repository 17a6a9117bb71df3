"""Wilson's interval, paired differences and rank agreement: published numbers, scipy's, exact coverage, known extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from worldsim.report.proportions import agreement, mcnemar, paired, wilson

# source: Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (score, no continuity correction)
NEWCOMBE = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}


@pytest.mark.parametrize(("counts", "bounds"), NEWCOMBE.items())
def test_wilson_gives_the_textbooks_numbers(counts, bounds):
    rate = wilson(*counts)
    assert (round(rate.low, 4), round(rate.high, 4)) == bounds
    assert rate.rate == counts[0] / counts[1]


def test_wilson_is_scipys_everywhere():
    for trials in (1, 2, 7, 50):
        for successes in range(trials + 1):
            for level in (0.8, 0.95):
                theirs = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
                ours = wilson(successes, trials, level)
                assert math.isclose(ours.low, theirs.low, abs_tol=1e-12)
                assert math.isclose(ours.high, theirs.high, abs_tol=1e-12)


def test_no_trial_is_no_number_and_nonsense_is_refused():
    assert wilson(0, 0).to_json() == {"successes": 0, "trials": 0, "rate": None, "low": None, "high": None}
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def cells(both: int, one: int, other: int, neither: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, True)] * both + [(True, False)] * one + [(False, True)] * other + [(False, False)] * neither
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_paired_difference_keeps_its_level():
    """Exact coverage over every outcome of 12 pairs, for rates that differ and answers that are correlated."""
    n = 12
    table = {
        (b, o, t): paired(*cells(b, o, t, n - b - o - t))
        for b in range(n + 1)
        for o in range(n + 1 - b)
        for t in range(n + 1 - b - o)
    }
    for chances in ((0.25, 0.25, 0.25, 0.25), (0.6, 0.2, 0.1, 0.1), (0.3, 0.1, 0.1, 0.5), (0.2, 0.5, 0.1, 0.2)):
        truth, covered = chances[1] - chances[2], 0.0
        for (b, o, t), found in table.items():
            if found.low <= truth <= found.high:
                covered += stats.multinomial.pmf([b, o, t, n - b - o - t], n, chances)
        assert 0.93 < covered < 0.995, (chances, covered)


def test_paired_difference_knows_what_it_is_made_of():
    first, second = cells(20, 12, 2, 16)
    found = paired(first, second)
    assert math.isclose(found.difference, 0.2)
    assert (found.only_first, found.only_second) == (12, 2)
    assert math.isclose(found.p, stats.binomtest(2, 14).pvalue)
    assert found.low > 0, "a difference that McNemar sees, the interval sees"
    turned = paired(second, first)
    assert math.isclose(turned.low, -found.high)
    assert math.isclose(turned.high, -found.low)
    unpaired = math.sqrt((32 / 50 - wilson(32, 50).low) ** 2 + (wilson(22, 50).high - 22 / 50) ** 2)
    assert 0.2 - found.low < unpaired, "pairing makes it narrower where the answers agree"
    same = paired(first, first)
    assert same.difference == 0
    assert same.low < 0 < same.high
    assert mcnemar(0, 0) == same.p == 1


def test_agreement_of_two_rankings():
    truth = [0.1, 0.5, 0.9]
    perfect, turned = agreement([0.2, 0.4, 0.6], truth), agreement([0.6, 0.4, 0.2], truth)
    assert math.isclose(perfect.pearson, 1)
    assert (perfect.violations, perfect.pairs, perfect.mean_maximum) == (0, 3, 0)
    assert math.isclose(turned.pearson, -1)
    assert turned.violations == 3
    assert math.isclose(turned.mean_maximum, np.mean([0.8, 0.4, 0.8]))
    swapped = agreement([0.4, 0.2, 0.6], truth)  # the two lower ones, 0.4 apart, in the wrong order
    assert swapped.violations == 1
    assert math.isclose(swapped.mean_maximum, np.mean([0.4, 0.4, 0.0]))
    assert agreement([0.5, 0.5], [0.1, 0.2]).to_json()["pearson"] is None
