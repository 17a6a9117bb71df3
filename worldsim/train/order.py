"""Which sample is seen when, and with which noise: functions of (seed, step) alone, so a resume has nothing to restore."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Order:
    """Endless epochs over samples, each a fresh permutation.

    The sequence is global: process r of R takes its slice of each global batch, so a run sees the same samples in the same
    order at any number of processes with the same global batch.

    Samples may lie in buckets that a batch must not mix (clips of one length). Each bucket has endless epochs of its own;
    a global batch, of all processes together, comes from one bucket, and buckets take turns in proportion to their sizes,
    so every sample is seen equally often: at any time two buckets differ by less than two global batches from their share.

    Args:
        counts: samples, or samples per bucket; they are numbered through all buckets.
        batch: of this process.
    """

    def __init__(
        self, counts: int | Sequence[int], seed: int, batch: int, accumulate: int = 1, rank: int = 0, world_size: int = 1
    ) -> None:
        self.counts = [counts] if isinstance(counts, int) else list(counts)
        self.seed, self.batch = seed, batch
        self.accumulate, self.rank, self.world_size = accumulate, rank, world_size
        self._epochs: dict[tuple[int, int], np.ndarray] = {}
        self._taken = np.zeros((1, len(self.counts)), np.int64)

    def indices(self, step: int, micro: int = 0) -> np.ndarray:
        """The samples of forward pass ``micro`` of ``step`` on this rank, int64 ``[batch]``."""
        bucket, turn = self._turn(step * self.accumulate + micro)
        positions = (turn * self.world_size + self.rank) * self.batch + np.arange(self.batch)
        count, offset = self.counts[bucket], sum(self.counts[:bucket])
        return np.array([offset + self._epoch(bucket, p // count)[p % count] for p in positions.tolist()], np.int64)

    def _turn(self, number: int) -> tuple[int, int]:
        """Global batch ``number``: its bucket, and how many global batches of that bucket came before."""
        if len(self.counts) == 1:
            return 0, number
        if number + 1 >= len(self._taken):
            self._schedule(max(number + 1, 2 * len(self._taken)))
        bucket = int(np.argmax(self._taken[number + 1] - self._taken[number]))
        return bucket, int(self._taken[number, bucket])

    def _schedule(self, upto: int) -> None:
        """Give each turn to the bucket that is furthest behind its share; a function of the counts alone."""
        total, taken = sum(self.counts), [self._taken[-1]]
        counts = np.array(self.counts, np.int64)
        for number in range(len(self._taken), upto + 1):
            behind = counts * number - total * taken[-1]
            taken.append(taken[-1] + (np.arange(len(counts)) == behind.argmax()))
        self._taken = np.concatenate([self._taken, np.stack(taken[1:])])

    def _epoch(self, bucket: int, epoch: int) -> np.ndarray:
        if (bucket, epoch) not in self._epochs:
            for old in [e for b, e in self._epochs if b == bucket and e < epoch - 2]:
                del self._epochs[bucket, old]
            order = np.random.default_rng([self.seed, epoch, bucket]).permutation(self.counts[bucket])
            self._epochs[bucket, epoch] = order
        return self._epochs[bucket, epoch]


def noise_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers (run seed, step, pass, rank; or clip seed, sample, chunk)."""
    return int(np.random.SeedSequence([len(parts), *parts]).generate_state(1, np.uint64)[0] >> np.uint64(1))
