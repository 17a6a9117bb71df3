"""What stands between a policy's wish and the motors: clamps as pure functions, watchdogs that are told the time.

An arm is stopped by refusing to go on: :class:`Stopped` leaves the loop, which holds the arm, disconnects and keeps the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from worldsim.core.errors import UserError, did_you_mean

MAX_AGE = 0.5
"""Seconds after which a camera's picture is stale. source: LeRobot 0.6.1 ``Camera.read_latest(max_age_ms=500)``."""
LATE_PERIODS = 2
"""Periods that a policy, or the loop itself, may be late before the robot is stopped."""
MAX_RELATIVE_TARGET = 5.0
"""How far a target may lie from where a joint is, in its own unit (deg, or % of a gripper)."""
FAULTS = ("camera", "late", "nan", "motor", "policy", "log")
"""What stops a robot because something is wrong; the command then exits with 1."""


class Stopped(Exception):
    """The loop ends here.

    Args:
        by: ``time``, ``key``, ``interrupt``, or one of :data:`FAULTS`.
        sentence: for the user.
    """

    def __init__(self, by: str, sentence: str) -> None:
        super().__init__(sentence)
        self.by, self.sentence = by, sentence

    @property
    def fault(self) -> bool:
        return self.by in FAULTS


def limits(most: float | Mapping[str, float] | None, names: Sequence[str]) -> np.ndarray | None:
    """``max_relative_target`` as one number per action entry, ``[A]``; None is no limit.

    Args:
        most: one number for all, or one per joint (``shoulder_pan`` or ``shoulder_pan.pos``), then for every joint.

    Raises:
        UserError: a number that is not above 0, an unknown joint, or one that is missing.
    """
    if most is None:
        return None
    given = dict.fromkeys(names, most) if isinstance(most, int | float) else _by_name(most, names)
    out = np.array([given[name] for name in names], np.float64)
    if not (np.isfinite(out) & (out > 0)).all():
        raise UserError(f"max_relative_target must be above 0 for every joint, not {most}")
    return out


def _by_name(most: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    short = {name.removesuffix(".pos"): name for name in names}
    for key in most:
        if key not in names and key not in short:
            raise UserError(f"max_relative_target names no joint '{key}'{did_you_mean(key, short)}")
    out = {short.get(key, key): value for key, value in most.items()}
    for name in names:
        if name not in out:
            raise UserError(f"max_relative_target says nothing about the joint '{name}'; give a number for every joint")
    return out


def clamp_relative(row: np.ndarray, present: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """``[A]``: every entry at most ``limit`` away from ``present``."""
    return np.clip(row, present - limit, present + limit)


def clamp_range(row: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """``[A]``: every entry within ``[low, high]``, the 1 % and 99 % quantiles of the training actions."""
    return np.clip(row, low, high)


def require_finite(row: np.ndarray, names: Sequence[str], who: str = "the policy") -> None:
    """
    Raises:
        Stopped: the row has another width, or holds NaN or infinity.
    """
    if row.shape != (len(names),):
        raise Stopped("nan", f"{who} gave a row of shape {row.shape} where the robot has {len(names)} joints")
    bad = [name for name, value in zip(names, row) if not np.isfinite(value)]
    if bad:
        raise Stopped("nan", f"{who} gave {row[list(names).index(bad[0])]} for {bad[0]}; nothing was sent")


@dataclass(frozen=True)
class Guard:
    """A row on its way to the motors: refused, clamped to the training range, then to what is near.

    Attributes:
        names: of the action entries. low, high: training range ``[A]`` or None. limit: ``[A]`` or None.
        at: for each action entry, where the state reports its position; None where it does not.
        deltas: rows are changes, so that ``limit`` bounds the row itself. who: gives the rows, in words.
    """

    names: tuple[str, ...]
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    limit: np.ndarray | None = None
    at: tuple[int, ...] | None = None
    deltas: bool = False
    who: str = "the policy"

    def check(self, row: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """The row to send, float32 ``[A]``, and the names of the entries that were clamped.

        Raises:
            Stopped: see :func:`require_finite`; also for a state that is not finite, against which nothing can be clamped.
        """
        require_finite(row, self.names, self.who)
        wish = row.astype(np.float64)
        safe = wish if self.low is None or self.high is None else clamp_range(wish, self.low, self.high)
        if self.limit is not None:
            safe = clamp_relative(safe, self.present(state), self.limit)
        clamped = [name for name, a, b in zip(self.names, wish, safe) if abs(a - b) > 1e-6]
        return safe.astype(np.float32), clamped

    def present(self, state: np.ndarray) -> np.ndarray:
        """Where the joints are, ``[A]``; zeros for rows that are changes."""
        if self.deltas or self.at is None:
            return np.zeros(len(self.names))
        here = state[list(self.at)].astype(np.float64)
        if not np.isfinite(here).all():
            raise Stopped("motor", "the robot reports a position that is no number")
        return here


def positions(action_names: Sequence[str], state_names: Sequence[str]) -> tuple[int, ...] | None:
    """For each action entry the state entry of the same name; None unless all have one."""
    places = {name: k for k, name in enumerate(state_names)}
    return tuple(places[name] for name in action_names) if set(action_names) <= set(places) else None


@dataclass
class CameraWatch:
    """Stops when a camera shows one picture, bit by bit, for longer than ``max_age`` seconds. Real sensors never do."""

    max_age: float = MAX_AGE
    last: dict[str, tuple[np.ndarray, float]] = field(default_factory=dict)

    def see(self, pixels: Mapping[str, np.ndarray], now: float) -> None:
        """``pixels``: camera -> uint8 ``[H, W, 3]``, which must not change afterwards. ``now``: seconds.

        Raises:
            Stopped: naming the camera.
        """
        for camera, frame in pixels.items():
            known = self.last.get(camera)
            if known is None or not np.array_equal(known[0], frame):
                self.last[camera] = (frame, now)
            elif now - known[1] > self.max_age:
                raise Stopped(
                    "camera", f"camera '{camera}' has shown the same picture for {(now - known[1]) * 1000:.0f} ms"
                )


@dataclass
class LateWatch:
    """Stops when the policy, or the loop, is late by more than ``periods`` periods."""

    period: float
    periods: float = LATE_PERIODS

    def policy(self, waited: int) -> None:
        """``waited``: whole periods since the policy was asked, without an answer."""
        if waited > self.periods:
            raise Stopped(
                "late",
                f"the policy has not answered for {waited} periods of {self.period * 1000:.0f} ms; "
                "--hz asks it less often, late_periods waits longer",
            )

    def loop(self, elapsed: float) -> None:
        """``elapsed``: seconds between two ticks."""
        if elapsed > (1 + self.periods) * self.period:
            raise Stopped("late", f"a step took {elapsed * 1000:.0f} ms where {self.period * 1000:.0f} ms are given")
