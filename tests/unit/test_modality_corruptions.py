"""Wrong tokens: each is wrong in the way it says, in no other, and never by accident the next window's."""

from __future__ import annotations

import numpy as np
import pytest

from worldsim.commands._modality_baselines import Copy
from worldsim.commands._modality_corruptions import Windows, about, corrupted, futures, moved, names, ranked
from worldsim.core.errors import UserError

N = 200
LENGTHS = (11, 21, 31)
CENTROIDS = np.random.default_rng(0).normal(size=(N, 5))


def windows(context: int = 3) -> Windows:
    """Frame t of episode e has the tokens 100 e / 3-ish painted: episode and frame can be read from a token."""
    tokens = [np.stack([e * 60 + np.arange(n), e * 60 + np.arange(n)], 1) for e, n in enumerate(LENGTHS)]
    places = [(e, t) for e, n in enumerate(LENGTHS) for t in range(context - 1, n)]
    return Windows(tokens, np.array([e for e, _ in places]), np.array([t for _, t in places]), context)


def test_current_tokens_end_at_the_window_start() -> None:
    w = windows()
    np.testing.assert_array_equal(w.current()[:, -1, 0], w.episode * 60 + w.start)
    np.testing.assert_array_equal(w.current()[:, 0, 1], w.episode * 60 + w.start - 2)


def test_stale_is_late_by_the_delay_and_stays_in_its_episode() -> None:
    w = windows()
    found = corrupted("stale", w, CENTROIDS, delay=4)
    np.testing.assert_array_equal(found[:, -1, 0], w.episode * 60 + np.maximum(w.start - 4, 0))


def test_other_episode_is_another_one_at_the_same_phase() -> None:
    w = windows()
    found = corrupted("other_episode", w, CENTROIDS, 3)[:, -1, 0]
    lender, frame = found // 60, found % 60
    assert (lender != w.episode).all()
    assert len({(a, b) for a, b in zip(w.episode, lender)}) == 3, "an episode borrows from one other throughout"
    lengths = np.array(LENGTHS) - 1
    assert (np.abs(frame / lengths[lender] - w.start / lengths[w.episode]) <= 0.5 / lengths[lender] + 1e-9).all()


def test_other_episode_needs_two() -> None:
    one = Windows([np.zeros((5, 1), int)], np.zeros(3, int), np.arange(2, 5), 3)
    with pytest.raises(UserError, match="two held-out episodes"):
        corrupted("other_episode", one, CENTROIDS)


def test_shuffle_keeps_the_tokens_and_moves_them_together() -> None:
    w = windows()
    found = corrupted("shuffle", w, CENTROIDS, 1)
    assert sorted(map(tuple, found.reshape(len(found), -1))) == sorted(map(tuple, w.current().reshape(len(found), -1)))
    assert (found != w.current()).any(axis=(1, 2)).mean() > 0.9


def test_random_is_uniform_over_all_codes_and_seeded() -> None:
    w = Windows([np.zeros((4000, 1), int)], np.zeros(3900, int), np.arange(50, 3950), 2)
    found = corrupted("random", w, CENTROIDS, 0)
    counts = np.bincount(found.ravel(), minlength=N)
    assert counts.min() > 0
    assert abs(counts / counts.sum() - 1 / N).max() < 0.006
    np.testing.assert_array_equal(found, corrupted("random", w, CENTROIDS, 0))
    assert (found != corrupted("random", w, CENTROIDS, 1)).any()


def test_nearest_wrong_is_the_nearest_other_centroid() -> None:
    gaps = np.linalg.norm(CENTROIDS[:, None] - CENTROIDS[None], axis=-1)
    np.fill_diagonal(gaps, np.inf)
    np.testing.assert_array_equal(ranked(CENTROIDS, 0.0), gaps.argmin(1))
    np.fill_diagonal(gaps, -np.inf)
    np.testing.assert_array_equal(ranked(CENTROIDS, 1.0), gaps.argmax(1))


def test_equal_centroids_are_still_replaced() -> None:
    """Two codes at one place: the wrong one is the other, not itself."""
    same = np.array([[0.0], [0.0], [5.0]])
    np.testing.assert_array_equal(ranked(same, 0.0), [1, 0, 0])


def test_graded_corruption_moves_farther_and_farther() -> None:
    w = windows()
    ways = [moved(CENTROIDS, w.current(), corrupted(f"graded:{s}", w, CENTROIDS)) for s in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert ways == sorted(ways)
    assert ways[0] > 0
    assert moved(CENTROIDS, w.current(), w.current()) == 0


def test_true_futures_are_those_of_the_frames_after_the_window_start() -> None:
    """``w_{t+1} … w_{t+K}``, not ``w_t``; shuffled ones are other windows', whole."""
    where = Windows([np.arange(10)[:, None], 50 + np.arange(9)[:, None]], np.array([0, 0, 1]), np.array([2, 4, 3]), 3)
    true = futures("oracle", where, 2, 64)
    assert true[..., 0].tolist() == [[3, 4], [5, 6], [54, 55]]
    assert sorted(futures("shuffle_future", where, 2, 64)[..., 0].tolist()) == sorted(true[..., 0].tolist())
    assert futures("random_future", where, 2, 64).shape == (3, 2, 1)


def test_names_are_written_out_and_checked() -> None:
    assert names(["random", "graded", "block"], [0, 0.5]) == ["random", "graded:0", "graded:0.5", "block"]
    with pytest.raises(UserError, match="did you mean 'random'"):
        names(["randm"], [])
    assert about("stale", {"delay": 8}) == "the tokens of 8 frames earlier"
    assert "50%" in about("graded:0.5", {})


def test_copy_baseline_on_a_toy_sequence() -> None:
    """0 0 1 1 1: one frame later three of four pairs are equal, two frames later one of three; with one count added to each
    of stay and leave."""
    copy = Copy.fit([np.array([[0], [0], [1], [1], [1]])], 3, 2)
    np.testing.assert_allclose(copy.stay, [(3 + 1) / (4 + 2), (1 + 1) / (3 + 2)])
    np.testing.assert_allclose(copy.frequency, np.array([3, 4, 1]) / 8)
    now, then = np.array([[0]]), np.array([[[0], [1]]])
    other = (1 - 2 / 5) * (4 / 8) / (1 - 3 / 8)
    np.testing.assert_allclose(copy.bits(now, then), -np.log2([[[4 / 6], [other]]]))


def test_copy_baseline_is_a_distribution_and_never_crosses_episodes() -> None:
    copy = Copy.fit([np.full((6, 1), 0), np.full((6, 1), 1)], 4, 3)
    np.testing.assert_allclose(copy.stay, [(5 * 2 + 1) / (5 * 2 + 2), (4 * 2 + 1) / (4 * 2 + 2), (3 * 2 + 1) / (3 * 2 + 2)])
    now = np.zeros((4, 1), int)
    then = np.repeat(np.arange(4)[:, None, None], 3, axis=1)
    np.testing.assert_allclose((2.0 ** -copy.bits(now, then)).sum(axis=0), 1.0)
    assert Copy.fit([np.array([[2]])], 4, 3).stay.tolist() == [0.5, 0.5, 0.5], "an episode too short for a pair counts none"
