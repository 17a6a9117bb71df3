"""The loop that keeps time: look, think, check, send, log; the same for a robot, a fake one and a dream.

Step t: frame t is seen, the policy is asked, and what is sent acts between frame t and frame t + 1. However it ends, the
robot is held where it is, and the log is closed; whoever connected it disconnects it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from worldsim.core.protocols import Policy
from worldsim.data.robot_log import EpisodeLog
from worldsim.robots import Body
from worldsim.robots.chunks import Chunks
from worldsim.robots.pace import Pace, first_in_line, no_garbage_pauses
from worldsim.robots.safety import LATE_PERIODS, MAX_AGE, CameraWatch, Guard, LateWatch, Stopped
from worldsim.robots.thinking import Answer, Thinker

BUDGET = 0.8
"""Part of a period in which the policy must have answered; the rest is for sending and for looking in time."""
Mode = Literal["watch", "shadow", "live", "dream"]


class Person(Protocol):
    """Who drives in ``shadow``: gives one action row ``[A]``."""

    def row(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        hz: steps per second. steps: how many; None is until stopped. execute, ensemble: see ``chunks.Chunks``.
        late_periods, max_age: see ``safety``. hold: seconds that the robot is held before it is let go.
    """

    mode: Mode
    hz: float
    steps: int | None = None
    seed: int = 0
    execute: int = 1
    ensemble: float | None = None
    late_periods: float = LATE_PERIODS
    max_age: float = MAX_AGE
    hold: float = 0.5


@dataclass
class Report:
    """What happened.

    Attributes:
        ticks: when each step began, s. late: steps at which the policy's answer was not there. overruns: those, and periods
            that the loop itself missed. clamped: joint -> steps. thought: seconds of each answer.
        realtime: whether the loop had real-time priority.
        held: where the robot was held in the end; None where nothing was sent. notes: what else went wrong.
    """

    stopped: Stopped = field(default_factory=lambda: Stopped("time", "the time is over"))
    steps: int = 0
    ticks: list[float] = field(default_factory=list)
    late: int = 0
    overruns: int = 0
    sent: int = 0
    clamped: Counter = field(default_factory=Counter)
    thought: list[float] = field(default_factory=list)
    first_thought: float = 0.0
    realtime: bool = False
    held: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Loop:
    """One run. The body is connected.

    Args:
        guard: of rows on their way to the motors. look: raises :class:`Stopped` when the user wants it (a key, a signal).
        person: drives in ``shadow``; None there means that the joints are moved by hand.
    """

    body: Body
    policy: Policy
    settings: Settings
    guard: Guard
    log: EpisodeLog
    look: Callable[[], None] = lambda: None
    person: Person | None = None
    report: Report = field(default_factory=Report)

    def run(self) -> Report:
        """Until the time is over or something stops it. Raises only what is a defect of this program, after holding."""
        self.pace, self.chunks = Pace(self.settings.hz), Chunks(self.settings.execute, self.settings.ensemble)
        real = self.settings.mode != "dream"
        self.cameras = CameraWatch(self.settings.max_age if real else float("inf"))
        self.lateness = LateWatch(1 / self.settings.hz, self.settings.late_periods if real else float("inf"))
        self.thinker = Thinker(self.policy)
        self.asked_at: int | None = None
        self.wish: np.ndarray | None = None
        self.last: np.ndarray | None = None
        self.world: dict[str, Any] = {}
        self.state: np.ndarray | None = None
        with self._ending(), no_garbage_pauses(), first_in_line(self.log.thread.native_id or 0) as self.report.realtime:
            try:
                self._warm_up()
                self._steps()
            except Stopped as stopped:
                self.report.stopped = stopped
            except BaseException as error:
                self.report.stopped = Stopped("defect", f"{type(error).__name__}: {error}")
                raise
        return self.report

    def _warm_up(self) -> None:
        """A first question before the clock runs: a network's first answer takes far longer than the others."""
        self.thinker.ask(self.body.observe(), self.settings.seed)
        answer = self.thinker.answer(None, self.look)
        assert answer is not None
        self.report.first_thought = answer.seconds
        self.began = time.perf_counter()

    def _steps(self) -> None:
        self.pace.begin()
        for tick in self._count():
            self._step(tick)
            self.report.steps += 1
            if tick + 1 != self.settings.steps:
                elapsed = self.pace.wait(self.look)
                if self._must_send():  # who only looks on does no harm by being late, which is counted
                    self.lateness.loop(elapsed)

    def _count(self) -> Iterator[int]:
        tick = 0
        while self.settings.steps is None or tick < self.settings.steps:
            yield tick
            tick += 1

    def _step(self, tick: int) -> None:
        """A frame that was seen is logged, whatever happens to what should have followed it."""
        self.look()
        seen = self.body.observe()
        line: dict[str, Any] = {"t": tick, "seconds": round(self.pace.now - self.began, 6), "state": seen["agent_pos"]}
        self.state, waiting = seen["agent_pos"], False
        try:
            self.cameras.see(seen["pixels"], time.perf_counter())
            self._think(tick, seen, line)
            row, clamped = self._checked(seen["agent_pos"], line)
            line["clamped"] = clamped
            waiting = row is None and self._must_send()  # for the very first answer, with nothing to hold meanwhile
            if row is not None:
                line["sent"] = self.last = self.body.send(row)
                self.report.sent += 1
                self.report.clamped.update(clamped)
        finally:
            if not waiting:
                self._record(seen["pixels"], line)

    def _record(self, pixels: dict[str, np.ndarray], line: dict[str, Any]) -> None:
        try:
            self.log.add(pixels, **line)
        except Exception as error:  # a full disk stops the robot as anything else does
            raise Stopped("log", f"the log cannot be written: {error}") from error

    def _think(self, tick: int, seen: dict[str, Any], line: dict[str, Any]) -> None:
        """Ask where a row is due, wait within the period, and put the wish for this tick into ``line``."""
        if self.asked_at is None and self.chunks.wants(tick):
            self.thinker.ask(seen, self.settings.seed if tick == 0 else None)
            self.asked_at = tick
        else:
            self.thinker.show(seen)
        if self.asked_at is not None:
            self._hear(self.asked_at, tick, line)
        if not line.get("late"):
            self.wish = self.chunks.row(tick)
        if self.wish is not None:
            line["wish"] = self.wish
        line |= self.world

    def _hear(self, asked: int, tick: int, line: dict[str, Any]) -> None:
        paced = self.settings.mode != "dream"
        answer = self.thinker.answer(self.pace.now + BUDGET / self.settings.hz if paced else None, self.look)
        if answer is None:
            line["late"] = True
            self.report.late += 1
            self.report.overruns += 1
            self.lateness.policy(tick - asked + 1)
            return
        self.asked_at = None
        self.report.thought.append(answer.seconds)
        line["thought"] = round(answer.seconds, 6)
        self.chunks.add(asked, answer.chunk)
        self.world = _tokens(answer)

    def _checked(self, state: np.ndarray, line: dict[str, Any]) -> tuple[np.ndarray | None, list[str]]:
        """The row to send, or None; a wish that is no number stops every mode."""
        wish = line.get("wish")
        try:
            safe, clamped = (None, []) if wish is None else self.guard.check(wish, state)
        except Stopped:
            line["refused"] = line.pop("wish")
            raise
        if self.settings.mode == "shadow" and self.person is not None:
            return replace(self.guard, low=None, high=None, who="the person").check(self.person.row(), state)
        if not self._must_send():
            return None, clamped
        return (self._stay(state), []) if line.get("late") else (safe, clamped)

    def _stay(self, state: np.ndarray) -> np.ndarray | None:
        """What holds the robot while its policy is late: what was sent last, else where it is."""
        if self.body.action_spec.mode == "delta":
            return np.zeros(len(self.guard.names), np.float32)
        if self.last is not None or self.body.at is None:
            return self.last
        return state[list(self.body.at)]

    def _must_send(self) -> bool:
        return self.settings.mode in ("live", "dream") or (self.settings.mode == "shadow" and self.person is not None)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Whatever happens inside: hold the robot, then close the log."""
        try:
            yield
        finally:
            self.thinker.close()
            report = self.report
            report.ticks = self.pace.ticks
            report.overruns += self.pace.missed
            try:
                self._hold()
            finally:
                try:
                    self.log.close(stopped_by=report.stopped.by, why=report.stopped.sentence)
                except Exception as error:  # as above; it must not hide why the loop ended
                    report.notes.append(f"the end of the log could not be written: {error}")

    def _hold(self) -> None:
        """Only what was driven here is held; a robot that cannot be reached any more cannot be, which is said."""
        if not self.report.sent or self.settings.mode == "dream":
            return
        try:
            self.report.held = self.body.hold(self.state)
        except Stopped as stopped:
            self.report.notes.append(f"the robot could not be held: {stopped.sentence}")
            return
        time.sleep(self.settings.hold)


def _tokens(answer: Answer) -> dict[str, Any]:
    """World tokens as plain lists: ``token`` ``[P]`` and ``future`` ``[K, P]``; empty for a policy without them."""
    world = answer.world or {}
    return {key: np.asarray(world[key]).tolist() for key in ("token", "future") if world.get(key) is not None}
