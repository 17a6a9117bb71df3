"""Chunk reuse and temporal ensembling; pace and keys."""

from __future__ import annotations

import math
import os
import pty
import threading
import time

import numpy as np
import pytest

from worldsim.robots.chunks import Chunks, ensemble
from worldsim.robots.keys import StopKey
from worldsim.robots.pace import SLICE, Pace, bare, first_in_line, jitter, sleep_until


def chunk(tick: int, length: int = 4) -> np.ndarray:
    """Row i says at which tick it was asked for and for which it is meant: ``[100 * tick + tick + i]``."""
    return np.array([[100 * tick + tick + i] for i in range(length)], np.float32)


@pytest.mark.parametrize(("execute", "asked"), [(1, range(9)), (3, [0, 3, 6]), (4, [0, 4, 8]), (99, [0, 4, 8])])
def test_reuse_asks_again_when_its_rows_are_used_up(execute, asked):
    chunks, found = Chunks(execute), []
    for tick in range(9):
        if chunks.wants(tick):
            found.append(tick)
            chunks.add(tick, chunk(tick))
        assert chunks.row(tick)[0] == 100 * found[-1] + tick, "row i is sent i ticks after its observation"
    assert found == list(asked)


def test_a_late_chunk_gives_the_row_that_is_due():
    chunks = Chunks(4)
    chunks.add(5, chunk(5))
    assert chunks.row(7)[0] == 507
    assert chunks.row(30)[0] == 508, "too late for all of them: the last"


def test_ensemble_is_acts_weighting():
    """Closed form: rows 1, 2, 4 from the oldest to the newest with m = ln 2 weigh 1, 1/2, 1/4."""
    rows = np.array([[1.0, 0], [2, 8], [4, 0]])
    assert np.allclose(ensemble(rows, math.log(2)), [(1 + 1 + 1) / 1.75, 4 / 1.75])
    assert np.allclose(ensemble(rows, 0.0), rows.mean(0))
    golden = [2.323339, 2.666578]  # (1 + 2 * 0.990050 + 4 * 0.980199) and 8 * 0.990050, over 2.970249
    assert np.allclose(ensemble(rows, 0.01), golden, atol=1e-5)


def test_ensembling_averages_all_chunks_that_speak_of_a_tick():
    chunks, m = Chunks(m=0.5), 0.5
    for tick in range(6):
        assert chunks.wants(tick), "every tick is asked for"
        chunks.add(tick, chunk(tick, 3))
        about = [100 * began + tick for began in range(max(0, tick - 2), tick + 1)]
        weights = np.exp(-m * np.arange(len(about)))
        assert np.isclose(chunks.row(tick)[0], (weights * about).sum() / weights.sum())
    assert len(chunks.asked) <= 3, "old chunks are forgotten"


LEROBOT = {  # ACTTemporalEnsembler(m, 5) of lerobot 0.6.1, updated with rows sin(3 t + i), i = 0 … 4, for t = 0 … 9
    0.01: [0.0, 0.493046, -0.038333, 0.0598, -0.22588, 0.227962, -0.225482, 0.218489, -0.207123, 0.191611],
    0.5: [0.0, 0.57706, 0.175993, -0.048622, -0.324199, 0.308989, -0.287594, 0.260442, -0.228078, 0.191149],
}


@pytest.mark.parametrize("m", LEROBOT)
def test_ensembling_gives_the_rows_that_lerobots_act_gives(m):
    chunks, found = Chunks(m=m), []
    for tick in range(10):
        chunks.add(tick, np.sin(3 * tick + np.arange(5, dtype=np.float32))[:, None])
        found.append(float(chunks.row(tick)[0]))
    assert np.allclose(found, LEROBOT[m], atol=1e-5)


def test_deadlines_do_not_drift():
    pace = Pace(100)
    pace.begin()
    for _ in range(20):
        time.sleep(0.002)
        pace.wait()
    assert 0.199 < pace.ticks[-1] - pace.ticks[0] < 0.4, "20 periods of 10 ms, whatever the work in between"
    assert len(bare(1000, 5)) == 5


def test_missed_periods_are_skipped_and_counted():
    pace = Pace(50)
    pace.begin()
    time.sleep(0.07)
    pace.wait()
    assert pace.missed >= 2
    at = pace.ticks[0] + 0.02 * (pace.missed + 1)
    assert pace.ticks[-1] >= at - 1e-4, "the next tick is one of the grid's, not now"


def test_jitter_is_the_error_of_the_period():
    found = jitter([0.0, 0.1, 0.202, 0.3], 10)
    assert found == {"p50_ms": 2.0, "p95_ms": 2.0, "p99_ms": 2.0, "max_ms": 2.0, "periods": 3} or math.isclose(
        found["max_ms"], 2.0, abs_tol=1e-6
    )
    assert jitter([], 10)["periods"] == 0


def test_the_loop_is_first_in_line_alone_and_for_its_time_only():
    """Where it is allowed; threads that it starts, a policy say, and what comes afterwards are as before."""
    before, inside = os.sched_getscheduler(0), []
    with first_in_line() as allowed:
        mine = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
        thread = threading.Thread(target=lambda: inside.append(os.sched_getscheduler(0)))
        thread.start()
        thread.join()
    assert mine == (os.SCHED_RR if allowed else before)
    assert inside == [os.SCHED_OTHER]
    assert os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == before


def test_without_permission_it_runs_as_before(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with first_in_line() as allowed:
        assert not allowed


def test_a_long_sleep_looks_around():
    looks = []
    sleep_until(time.perf_counter() + 3 * SLICE, lambda: looks.append(1))
    assert len(looks) >= 3


@pytest.mark.parametrize(("typed", "name"), [(b"q", "q"), (b"xy ", "space"), (b"\x1b", "esc"), (b"abc", None)])
def test_stop_keys_on_a_terminal(typed, name):
    master, terminal = pty.openpty()
    try:
        with StopKey(terminal) as key:
            assert key.pressed() is None
            os.write(master, typed)
            time.sleep(0.02)
            assert key.pressed() == name
    finally:
        os.close(master)
        os.close(terminal)


def test_without_a_terminal_there_is_no_key():
    with StopKey() as key:
        assert key.pressed() is None
