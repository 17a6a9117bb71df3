"""Averages per sample with intervals over episodes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from worldsim.report.clusters import Draws, expanded_tail
from worldsim.report.statistics import interval


def test_a_mean_counts_samples_not_episodes() -> None:
    """Three samples of value 1 and one of value 5 are 2 on average, whatever their episodes."""
    found = Draws.of(2, 0).pooled(np.array([3.0, 5.0]), np.array([3, 1]))
    assert found.mean == pytest.approx(2.0)
    assert (found.low, found.high, found.count) == (pytest.approx(1.0), pytest.approx(5.0), 2)


def test_many_equal_episodes_give_the_plain_bootstrap() -> None:
    """With one sample per episode it is the percentile bootstrap of the mean that ``report.statistics`` has."""
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    ours, plain = Draws.of(400, 1, 4000).pooled(values, np.ones(400)), interval(values, 2, 4000)
    assert ours.mean == pytest.approx(plain.mean)
    assert [ours.low, ours.high] == pytest.approx([plain.low, plain.high], abs=0.01)


def test_few_episodes_widen_the_percentiles_as_student_asks() -> None:
    """The tail at n is Phi(-sqrt(n / (n - 1)) t(0.975, n - 1)): t(0.975, 5) = 2.5706, so 0.24 % at six."""
    assert expanded_tail(6) == pytest.approx(0.00243, abs=2e-5)
    assert expanded_tail(100_000) == pytest.approx(0.025, abs=1e-5)
    assert expanded_tail(1) == 0
    assert [expanded_tail(n) for n in (2, 3, 5, 10, 50)] == sorted(expanded_tail(n) for n in (2, 3, 5, 10, 50))


def test_interval_of_six_episodes_covers_the_truth() -> None:
    """Plain percentiles of six would hold it in about 86 % of cases."""
    rng, held = np.random.default_rng(11), 0
    for trial in range(400):
        found = Draws.of(6, trial, 400).pooled(rng.normal(0, 1, 6), np.ones(6))
        held += bool(found.low <= 0 <= found.high)
    assert held / 400 > 0.91


def test_interval_covers_the_true_mean_at_its_level() -> None:
    """Episodes of 20 samples with an effect of their own: 95 % intervals over episodes hold the truth in nine of ten cases
    or more; the same samples taken as independent would in fewer than six of ten."""
    rng, held, naive = np.random.default_rng(5), 0, 0
    for trial in range(120):
        samples = rng.normal(0, 1, (25, 1)) + rng.normal(0, 1, (25, 20))
        found = Draws.of(25, trial, 400).pooled(samples.sum(1), np.full(25, 20))
        held += bool(found.low <= 0 <= found.high)
        flat = Draws.of(500, trial, 400).pooled(samples.ravel(), np.ones(500))
        naive += bool(flat.low <= 0 <= flat.high)
    assert held >= 108
    assert naive < 72


def test_ratio_of_a_constant_factor_has_no_width() -> None:
    """Paired draws: an error that is 1.5 times as large in every episode is so in every resample."""
    base = np.random.default_rng(0).uniform(1, 9, (12, 4))
    found = Draws.of(12).ratio(base * 1.5, base)
    assert found.mean.shape == (4,)
    for part in (found.mean, found.low, found.high):
        np.testing.assert_allclose(part, 1.5)


def test_difference_is_paired() -> None:
    base = np.random.default_rng(0).uniform(0, 100, 30)
    found = Draws.of(30).difference(base + 0.1, base, np.ones(30))
    np.testing.assert_allclose([found.mean, found.low, found.high], 0.1, atol=1e-9)


def test_what_no_episode_has_is_null_in_json() -> None:
    found = Draws.of(6).pooled(np.zeros((6, 2)), np.stack([np.ones(6), np.zeros(6)], 1))
    assert found.to_json() == {"mean": [0.0, None], "low": [0.0, None], "high": [0.0, None], "episodes": 6}
    json.dumps(found.to_json(), allow_nan=False)
    empty = Draws.of(0).ratio(np.zeros(0), np.zeros(0))
    assert empty.count == 0
    assert not empty.enough
    assert np.isnan(empty.mean)


def test_draws_depend_on_the_seed_alone() -> None:
    np.testing.assert_array_equal(Draws.of(9, 4).counts, Draws.of(9, 4).counts)
    assert not np.array_equal(Draws.of(9, 4).counts, Draws.of(9, 5).counts)
    assert (Draws.of(9, 4, 50).counts.sum(1) == 9).all()
