"""The order of training samples in buckets: nothing mixed, nothing missed, the same on every rank and after a resume."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from worldsim.train.order import Order

COUNTS = [12, 5, 1]
STARTS = [0, 12, 17, 18]


def bucket_of(samples: list[int]) -> int:
    found = {int(np.searchsorted(STARTS, s, side="right")) - 1 for s in samples}
    assert len(found) == 1, f"{samples} mix buckets"
    return found.pop()


def test_one_bucket_is_the_plain_order():
    """Permutations of numpy's generator seeded with (seed, epoch), one after the other: what earlier runs were made with."""
    plain = np.concatenate([np.random.default_rng([5, epoch]).permutation(12) for epoch in range(2)])
    for counts in (12, [12]):
        order = Order(counts, 5, batch=3)
        assert [order.indices(step).tolist() for step in range(8)] == plain.reshape(8, 3).tolist()


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_no_batch_mixes_buckets_and_each_sample_comes_once_per_epoch_of_its_bucket(batch):
    order = Order(COUNTS, 3, batch)
    drawn: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in range(18 * 4):
        samples = order.indices(step).tolist()
        drawn[bucket_of(samples)] += samples
    for bucket, samples in drawn.items():
        own, size = list(range(STARTS[bucket], STARTS[bucket + 1])), COUNTS[bucket]
        epochs = [samples[at : at + size] for at in range(0, len(samples) - size + 1, size)]
        assert epochs
        assert all(sorted(epoch) == own for epoch in epochs)
        assert len(samples) == 4 * size * batch  # its exact share of 4 x 18 batches
    assert drawn[0][:12] != drawn[0][12:24]  # epochs are shuffled anew


def test_buckets_take_turns_in_proportion():
    order = Order(COUNTS, 0, batch=2)
    taken = np.zeros(3)
    for step in range(200):
        taken[bucket_of(order.indices(step).tolist())] += 1
        behind = np.array(COUNTS) / 18 * (step + 1) - taken
        assert abs(behind).max() < 2


def test_ranks_and_accumulation_draw_one_global_sequence():
    alone = [Order(COUNTS, 5, batch=4).indices(step).tolist() for step in range(40)]
    ranks = [Order(COUNTS, 5, batch=2, rank=r, world_size=2) for r in range(2)]
    assert [list(chain(*(r.indices(step).tolist() for r in ranks))) for step in range(40)] == alone
    micro = Order(COUNTS, 5, batch=4, accumulate=2)
    assert [micro.indices(s, m).tolist() for s in range(20) for m in range(2)] == alone


def test_a_resume_asks_for_any_step_first():
    straight = [Order(COUNTS, 9, batch=2).indices(step).tolist() for step in range(60)]
    fresh = Order(COUNTS, 9, batch=2)
    for step in (59, 3, 30, 31, 0):
        assert fresh.indices(step).tolist() == straight[step]
