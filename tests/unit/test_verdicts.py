"""The rule from intervals to words: every boundary, and what it must not claim."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from worldsim.report.verdicts import Difference, Use, conclusion, reading


@pytest.mark.parametrize(
    ("low", "high", "episodes", "said"),
    [
        (1.11, 1.3, 20, "used"),
        (1.1, 1.3, 20, "weak"),  # the lower end must exceed 1.1, not reach it
        (1.01, 1.05, 20, "weak"),
        (1.0, 1.1, 20, "unused"),
        (0.8, 0.99, 20, "unused"),
        (1.0, 1.11, 20, "undecided"),
        (0.7, 5.0, 20, "undecided"),
        (1.5, 2.0, 4, "insufficient"),
        (math.nan, math.nan, 20, "insufficient"),
        (1.5, math.inf, 20, "insufficient"),
    ],
)
def test_reading(low: float, high: float, episodes: int, said: str) -> None:
    assert reading(low, high, episodes) == said


def difference(mean: float, low: float, high: float, seeds=(), episodes: int = 20, arm: str = "C") -> Difference:
    return Difference(arm, "A", mean, low, high, tuple(seeds) or (mean, mean, mean), episodes)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (difference(-0.02, -0.03, -0.01), "lower"),
        (difference(0.02, 0.01, 0.03), "higher"),
        (difference(-0.02, -0.04, 0.0), "no difference shown"),  # an end on 0 does not exclude it
        (difference(0.02, -0.01, 0.03), "no difference shown"),
        (difference(-0.02, -0.03, -0.01, seeds=(-0.05, -0.05, 0.04)), "seeds disagree"),
        (difference(-0.02, -0.03, -0.01, seeds=(-0.02, -0.02)), "insufficient"),
        (difference(-0.02, -0.03, -0.01, episodes=4), "insufficient"),
        (difference(math.nan, math.nan, math.nan), "insufficient"),
    ],
)
def test_outcome_of_a_difference(found: Difference, said: str) -> None:
    assert found.outcome == said


USED = Use("C", "random", 1.4, 1.3, 1.5, 20)
UNUSED = Use("C", "random", 1.0, 0.99, 1.02, 20)


def test_one_sentence_whatever_the_evidence() -> None:
    """It ends in one full stop, names every pair, and its claim follows the outcomes."""
    helped = conclusion([difference(-0.02, -0.03, -0.01)], [USED])
    assert helped.startswith("World tokens lowered held-out action error (C over A): C has a lower held-out action error")
    assert "the world input of C is used (random tokens multiply its action error by 1.4 [1.3 … 1.5])" in helped
    harmed = conclusion([difference(0.02, 0.01, 0.03)], [UNUSED])
    assert harmed.startswith("World tokens raised held-out action error (C against A)")
    assert "the world input of C is not used" in harmed
    nothing = conclusion([difference(0.0, -0.01, 0.01)], [])
    assert nothing.startswith("C against A shows no difference")
    nothing = conclusion([difference(0.0, -0.01, 0.01)], [UNUSED])
    assert nothing.startswith("No change of held-out action error by world tokens is supported")
    for sentence in (helped, harmed, nothing):
        assert sentence.endswith(".")
        assert ". " not in sentence


def test_mixed_evidence_says_both() -> None:
    found = conclusion([difference(-0.02, -0.03, -0.01), difference(0.02, 0.01, 0.03, arm="B")], [])
    assert found.startswith("World tokens lowered held-out action error (C over A) but world tokens raised")


def test_too_few_seeds_or_episodes_claim_nothing() -> None:
    """One seed: the use of the token may be judged, the effect of the arm may not, and the sentence says what is missing."""
    few = conclusion([difference(-0.02, -0.03, -0.01, seeds=(-0.02,))], [USED])
    assert few.startswith("The evidence is insufficient to say whether world tokens change held-out action error")
    assert "1 of at least 3 seeds" in few
    assert "lower held-out action error than" not in few
    assert "C against A cannot be judged (3 of at least 5" in conclusion([difference(-0.1, -0.2, -0.1, episodes=3)], [])
    assert "cannot be judged (2 of at least 5" in conclusion([], [Use("C", "random", 2, 1.9, 2.1, 2)])


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.2, 1.3, "The policy uses its world input:"),
        (1.02, 1.06, "The policy uses its world input weakly:"),
        (0.98, 1.02, "The policy does not use its world input:"),
        (0.9, 1.4, "Whether the world input is used is undecided:"),
    ],
)
def test_interventions_on_several_arms(low: float, high: float, said: str) -> None:
    """The strongest reading leads; each arm has its own half of the sentence."""
    uses = [
        Use("C", "random", (low + high) / 2, low, high, 9),
        replace(UNUSED if low < 1.1 and high < 1.1 else USED, arm="C_hist"),
    ]
    if high == 1.4:
        uses[1] = replace(uses[0], arm="C_hist")
    found = conclusion([], uses)
    assert found.startswith(said)
    assert "the world input of C " in found
    assert "the world input of C_hist " in found


def test_one_finding_is_said_once() -> None:
    assert (
        conclusion([], [USED])
        == "The world input of C is used (random tokens multiply its action error by 1.4 [1.3 … 1.5])."
    )


def test_nothing_compared_says_so() -> None:
    assert conclusion([], []) == "Nothing was compared, so nothing can be said about world tokens."
