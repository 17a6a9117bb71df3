"""Statistics of tokens against hand-counted episodes and plain loops; never across episodes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from worldsim.data import token_statistics as statistics
from worldsim.data.token_statistics import Bigram

TWO = {"a": np.array([0, 0, 1, 1, 0]), "b": np.array([2, 2, 2])}


def drawn(episodes: int = 5, positions: int = 3, codes: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"e{k}": rng.integers(0, codes, (4 + 3 * k, positions)).astype(np.int32) for k in range(episodes)}


def test_counted_by_hand() -> None:
    """Next frames: a has 0=0, 1=1 right of four, b both: 4 of 6; two ahead: only b's one of four; three ahead: 0 0 of a's two."""
    assert statistics.counts(TWO, 4).tolist() == [3, 2, 3, 0]
    assert statistics.copy_baseline(TWO, 3) == pytest.approx([4 / 6, 1 / 4, 1 / 2])
    shares = np.array([3, 2, 3]) / 8
    assert statistics.entropy(np.array([3, 2, 3, 0])) == pytest.approx(-(shares * np.log(shares)).sum())


def test_extremes_of_the_vocabulary() -> None:
    assert statistics.entropy(np.array([9, 0, 0])) == 0
    assert statistics.effective(np.array([9, 0, 0])) == 1
    assert statistics.effective(np.full(1024, 7)) == pytest.approx(1024)
    assert statistics.entropy(np.zeros(4)) == 0


def test_pairs_never_cross_episodes() -> None:
    """Every episode has its own code, so a pair of two codes would have crossed."""
    tokens = {f"e{k}": np.full((3 + k, 2), k) for k in range(6)}
    for ahead in (1, 2, 5):
        now, later = statistics.pairs(tokens, ahead)
        assert np.array_equal(now, later)
        assert len(now) == sum(2 * max(3 + k - ahead, 0) for k in range(6))


def test_positions_keep_to_themselves_and_time_goes_forward() -> None:
    rows = np.stack([10 * np.arange(6), 10 * np.arange(6) + 1], axis=1)  # frame t, position p -> 10 t + p
    now, later = statistics.pairs({"a": rows}, 2)
    assert np.array_equal(later - now, np.full(8, 20))
    assert sorted(now.tolist()) == sorted(rows[:4].reshape(-1).tolist())


def test_the_bigram_is_what_plain_counting_says() -> None:
    train, held_out = drawn(), {k: v[::-1] for k, v in drawn(3).items()}
    bigram = Bigram.fit(train, 7, 4)
    for k in range(1, 5):
        table = np.zeros((7, 7), int)
        for rows in train.values():
            for t in range(len(rows) - k):
                for p in range(3):
                    table[rows[t, p], rows[t + k, p]] += 1
        assert np.array_equal(bigram.successor[k - 1], table.argmax(1))  # argmax takes the smaller of equals, as here
        right = [
            table[rows[t, p]].argmax() == rows[t + k, p]
            for rows in held_out.values()
            for t in range(len(rows) - k)
            for p in range(3)
        ]
        assert bigram.accuracy(held_out)[k - 1] == pytest.approx(np.mean(right))


def test_the_bigram_knows_a_cycle_that_copying_does_not() -> None:
    cycle = {"a": np.arange(12) % 4}
    bigram = Bigram.fit(cycle, 6, 3)
    assert statistics.copy_baseline(cycle, 4).tolist() == [0, 0, 0, 1]
    assert bigram.accuracy(cycle).tolist() == [1, 1, 1]
    assert bigram.accuracy_at_changes(cycle).tolist() == [1, 1, 1]
    assert bigram.predict(np.array([4, 5]), 1).tolist() == [4, 5], "a code that was never seen is repeated"


def test_change_points_are_where_copying_fails() -> None:
    for rows in drawn().values():
        for ahead in (1, 3):
            changed = statistics.change_points(rows, ahead)
            assert changed.shape == (len(rows) - ahead, 3)
            assert changed.mean() == pytest.approx(1 - statistics.copy_baseline({"e": rows}, ahead)[-1])
    assert statistics.change_points(np.array([1, 2]), 5).shape == (0, 1)


def test_the_summary_is_json_with_gaps_where_nothing_can_be_said() -> None:
    found = statistics.summary(TWO, 4, 6, TWO)
    assert found["used"] == 3
    assert found["tokens"] == 8
    assert found["copy"][4] is None  # no episode has six frames
    assert found["change_rate"][0] == pytest.approx(1 / 3, abs=1e-6)
    assert found["bigram"][1] == pytest.approx(4 / 4)  # two ahead: 0 -> 1, 0 -> 1, 1 -> 0 and 2 -> 2
    assert math.isclose(found["effective"], math.exp(found["entropy_nats"]))
    assert "bigram" not in statistics.summary(TWO, 4, 2)
