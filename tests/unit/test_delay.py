"""The measured action delay: found for targets and deltas, through noise, and silent where nothing can be said."""

from __future__ import annotations

import numpy as np
import pytest

from worldsim.data.delay import LONGEST, measure


def robot(delay: int, mode: str, seed: int, frames: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """A smooth operator and an arm of 3 joints that obeys ``delay`` rows later, with a fifth of the motion as noise."""
    rng = np.random.default_rng(seed)
    wish = np.cumsum(rng.normal(size=(frames, 3)), 0) + rng.normal(size=(frames, 3))
    actions = wish if mode == "absolute" else rng.normal(size=(frames, 3))
    states = np.zeros((frames, 3))
    for t in range(frames - 1):
        order = actions[max(0, t - delay)]
        step = 0.7 * (order - states[t]) if mode == "absolute" else order @ np.array([[1, 0.3, 0], [0, 2, 0], [0.1, 0, 1]])
        states[t + 1] = states[t] + step + 0.2 * rng.normal(size=3)
    return actions, states


@pytest.mark.parametrize("delay", range(LONGEST + 1))
@pytest.mark.parametrize("mode", ["absolute", "delta"])
def test_the_delay_is_found(mode, delay):
    measured = measure([robot(delay, mode, seed) for seed in range(4)])
    assert measured.best == delay
    assert 0.8 < measured.explained[delay] <= 1
    assert all(measured.beats(used) == (used != delay) for used in range(LONGEST + 1))


def test_it_knows_neither_units_nor_a_missing_last_row_nor_columns_that_stand_still():
    pairs = [robot(2, "absolute", seed) for seed in range(4)]
    plain = measure(pairs)
    still = np.full((120, 1), 5.0)
    other = [
        (np.hstack([1e3 * a + 7, still])[:-1], np.hstack([still, 1e-3 * s - 2])) for a, s in pairs
    ]  # T - 1 rows, millimetres, a locked joint
    assert measure(other).explained == pytest.approx(plain.explained, abs=1e-6)


def test_actions_that_do_nothing_beat_nothing():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(300, 3)), np.cumsum(rng.normal(size=(300, 3)), 0)) for _ in range(3)]
    measured = measure(pairs)
    assert max(measured.explained) < 0.1
    assert not any(measured.beats(used) for used in range(LONGEST + 1))


def test_too_little_or_nothing_that_moves_is_no_answer():
    assert measure([]) is None
    assert measure([robot(1, "delta", 0, frames=40)]) is None
    assert measure([(np.random.default_rng(0).normal(size=(400, 3)), np.ones((400, 3)))]) is None


def test_a_broken_episode_does_not_count():
    pairs = [robot(2, "absolute", seed) for seed in range(4)]
    broken = (np.full((50, 3), np.nan), np.zeros((50, 3)))
    wide = (np.zeros((50, 4)), np.zeros((50, 3)))
    assert measure([broken, *pairs, wide]) == measure(pairs)
