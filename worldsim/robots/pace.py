"""A steady rate: absolute deadlines, measured; and the bare loop that it is compared with."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

SLICE = 0.05
"""Longest sleep, s, so that a signal or a key is noticed in time whatever the rate."""


class Pace:
    """Ticks at ``start + k * period``; work that takes longer than a period skips the ticks that it missed.

    Attributes:
        ticks: when each tick began, s. missed: ticks that were skipped.
    """

    def __init__(self, hz: float) -> None:
        self.period, self.missed = 1.0 / hz, 0
        self.ticks: list[float] = []

    def begin(self) -> None:
        now = time.perf_counter()
        self.ticks, self.next = [now], now + self.period

    @property
    def now(self) -> float:
        """When this tick began."""
        return self.ticks[-1]

    def wait(self, look: Callable[[], None] = lambda: None) -> float:
        """Sleep until the next tick; ``look`` is called at least every :data:`SLICE` seconds. Returns the last tick's length."""
        behind = time.perf_counter() - self.next
        if behind >= self.period:
            skipped = int(behind / self.period)
            self.missed += skipped
            self.next += skipped * self.period
        sleep_until(self.next, look)
        self.ticks.append(time.perf_counter())
        self.next += self.period
        return self.ticks[-1] - self.ticks[-2]


def sleep_until(deadline: float, look: Callable[[], None] = lambda: None) -> None:
    """Sleep until ``time.perf_counter()`` is ``deadline``."""
    look()
    while (left := deadline - time.perf_counter()) > 0:
        time.sleep(min(left, SLICE))
        if left > SLICE:
            look()


def bare(hz: float, count: int) -> list[float]:
    """When each of ``count`` ticks of a loop began that does nothing but sleep."""
    period, ticks = 1.0 / hz, [time.perf_counter()]
    for k in range(1, count):
        left = ticks[0] + k * period - time.perf_counter()
        if left > 0:
            time.sleep(left)
        ticks.append(time.perf_counter())
    return ticks


def jitter(ticks: list[float], hz: float) -> dict[str, float]:
    """``|period - 1 / hz|`` between ticks in ms: median, 95th and 99th percentile, greatest; and how many periods."""
    errors = np.abs(np.diff(ticks) - 1.0 / hz) * 1000 if len(ticks) > 1 else np.zeros(1)
    p50, p95, p99 = np.percentile(errors, [50, 95, 99])
    found = {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": errors.max()}
    return {name: round(float(value), 4) for name, value in found.items()} | {"periods": max(len(ticks) - 1, 0)}


@contextmanager
def no_garbage_pauses() -> Iterator[None]:
    """A full collection with torch loaded takes tens of ms: what is there already is set aside and no longer looked at."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def first_in_line(*others: int) -> Iterator[bool]:
    """Real-time priority for this thread, and not for those that it starts, where the system allows it, so that a busy machine
    does not make the loop late; gives whether it does. The loop sleeps nearly always, so nobody is kept waiting by it.

    Args:
        others: native ids of threads that hold Python's lock often and briefly, so that the loop does not wait for them.

    source: sched(7): SCHED_RR, SCHED_RESET_ON_FORK. Linux; needs root or ``ulimit -r``.
    """
    if not hasattr(os, "SCHED_RESET_ON_FORK"):
        yield False
        return
    threads = (0, *others)
    before = [(os.sched_getscheduler(thread), os.sched_getparam(thread)) for thread in threads]
    try:
        for thread in threads:
            os.sched_setscheduler(thread, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        for thread, (policy, priority) in zip(threads, before):
            _give_back(thread, policy, priority)


def _give_back(thread: int, policy: int, priority: os.sched_param) -> None:
    try:
        os.sched_setscheduler(thread, policy, priority)
    except PermissionError:  # without root the flag stays; it changes nothing any more
        os.sched_setscheduler(thread, policy | os.SCHED_RESET_ON_FORK, priority)
    except ProcessLookupError:  # that thread has ended
        return
