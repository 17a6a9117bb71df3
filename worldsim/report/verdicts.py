"""What intervals allow one to say: pure rules from numbers to words, so that no sentence of a report is written by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from worldsim.report.statistics import LEAST_EPISODES

USED_FROM = 1.1
"""Ratio corrupted / clean above which a token is used. # source: charbelsan/world-modality-vla, intervention test"""
LEAST_SEEDS = 3
Reading = Literal["used", "weak", "unused", "undecided", "insufficient"]
Outcome = Literal["lower", "higher", "no difference shown", "seeds disagree", "insufficient"]

READINGS: Mapping[str, str] = {
    "used": f"the whole interval lies above {USED_FROM}",
    "weak": f"the whole interval lies above 1, not above {USED_FROM}",
    "unused": f"the interval does not lie above 1, and excludes more than {USED_FROM}",
    "undecided": f"the interval holds both 1 and {USED_FROM}: more episodes are needed",
    "insufficient": f"fewer than {LEAST_EPISODES} episodes: nothing is claimed",
}
"""Each reading with the rule that leads to it."""


def reading(low: float, high: float, episodes: int) -> Reading:
    """How a token is used, from the interval of the ratio corrupted / clean action error."""
    if episodes < LEAST_EPISODES or not (math.isfinite(low) and math.isfinite(high)):
        return "insufficient"
    if low > USED_FROM:
        return "used"
    if low > 1:
        return "weak"
    return "unused" if high <= USED_FROM else "undecided"


@dataclass(frozen=True)
class Difference:
    """One arm against another: the paired difference of their held-out action errors, mean over seeds.

    Attributes:
        arm, base: their names; negative: ``arm`` has the lower error.
        mean, low, high: of the mean over seeds, with its interval over episodes.
        seeds: the same difference of each seed alone.
        episodes: that it rests on.
    """

    arm: str
    base: str
    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]
    episodes: int

    @property
    def outcome(self) -> Outcome:
        """``lower`` and ``higher`` only where the interval excludes 0 and every seed has its sign."""
        bounds = (self.mean, self.low, self.high, *self.seeds)
        if self.episodes < LEAST_EPISODES or len(self.seeds) < LEAST_SEEDS or not all(map(math.isfinite, bounds)):
            return "insufficient"
        if self.low <= 0 <= self.high:
            return "no difference shown"
        sign = 1 if self.low > 0 else -1
        if any(sign * value <= 0 for value in self.seeds):
            return "seeds disagree"
        return "higher" if sign > 0 else "lower"

    @property
    def words(self) -> str:
        """The outcome with its numbers, as half a sentence."""
        span = f"{signed(self.mean)} [{signed(self.low)} … {signed(self.high)}]"
        pair = f"{self.arm} against {self.base}"
        match self.outcome:
            case "lower" | "higher" as side:
                return f"{self.arm} has a {side} held-out action error than {self.base} ({span})"
            case "no difference shown":
                return f"{pair} shows no difference ({span})"
            case "seeds disagree":
                return f"{pair} is not settled, because the seeds disagree in sign ({span})"
        return f"{pair} cannot be judged ({self._lacking})"

    @property
    def _lacking(self) -> str:
        lacks = []
        if len(self.seeds) < LEAST_SEEDS:
            lacks.append(f"{len(self.seeds)} of at least {LEAST_SEEDS} seeds")
        if self.episodes < LEAST_EPISODES:
            lacks.append(f"{self.episodes} of at least {LEAST_EPISODES} held-out episodes")
        return " and ".join(lacks) or "an interval is not finite"


@dataclass(frozen=True)
class Use:
    """What one corruption of an arm's world input does: the ratio corrupted / clean with its interval over episodes."""

    arm: str
    corruption: str
    mean: float
    low: float
    high: float
    episodes: int

    @property
    def reading(self) -> Reading:
        return reading(self.low, self.high, self.episodes)

    @property
    def words(self) -> str:
        span = f"{self.mean:.3g} [{self.low:.3g} … {self.high:.3g}]"
        subject = f"the world input of {self.arm}"
        by = f"{self.corruption} tokens multiply its action error by {span}"
        match self.reading:
            case "used":
                return f"{subject} is used ({by})"
            case "weak":
                return f"{subject} is used weakly ({by})"
            case "unused":
                return f"{subject} is not used ({by})"
            case "undecided":
                return f"whether {subject} is used is undecided ({by})"
        return (
            f"whether {subject} is used cannot be judged ({self.episodes} of at least {LEAST_EPISODES} held-out episodes)"
        )


def conclusion(differences: Sequence[Difference], uses: Sequence[Use]) -> str:
    """The one sentence that the evidence supports: did world tokens help, and is the world input used.

    Args:
        differences: arms against arms, the most important first. uses: one per arm with a world input.
    """
    if not differences and not uses:
        return "Nothing was compared, so nothing can be said about world tokens."
    parts = [d.words for d in differences] + [u.words for u in uses]
    if len(parts) == 1:
        return f"{_capital(parts[0])}."
    return f"{headline(differences, uses)}: {'; '.join(parts)}."


def headline(differences: Sequence[Difference], uses: Sequence[Use]) -> str:
    """The conclusion without its numbers."""
    outcomes = {d.outcome for d in differences}
    if differences and outcomes == {"insufficient"}:
        return "The evidence is insufficient to say whether world tokens change held-out action error"
    helped = [f"{d.arm} over {d.base}" for d in differences if d.outcome == "lower"]
    harmed = [f"{d.arm} against {d.base}" for d in differences if d.outcome == "higher"]
    parts = []
    if helped:
        parts.append(f"world tokens lowered held-out action error ({', '.join(helped)})")
    if harmed:
        parts.append(f"world tokens raised held-out action error ({', '.join(harmed)})")
    if differences and not parts:
        parts.append("no change of held-out action error by world tokens is supported")
    return _capital(" but ".join(parts) if parts else _use_headline(uses))


def _use_headline(uses: Sequence[Use]) -> str:
    """For interventions alone."""
    found = {use.reading for use in uses}
    if found == {"insufficient"}:
        return "the evidence is insufficient to say whether the world input is used"
    if "used" in found:
        return "the policy uses its world input"
    if "weak" in found:
        return "the policy uses its world input weakly"
    return (
        "the policy does not use its world input" if found == {"unused"} else "whether the world input is used is undecided"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def signed(value: float) -> str:
    """Three digits and a sign."""
    return f"{value:+.3g}"
