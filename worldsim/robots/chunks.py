"""Which row of which chunk is sent at a tick: the first rows of the newest chunk, or an average over all that speak of it."""

from __future__ import annotations

import numpy as np


def ensemble(predictions: np.ndarray, m: float) -> np.ndarray:
    """Weighted mean of what several chunks say about one moment, oldest first: weights ``exp(-m * i)``, i = 0 the oldest.

    Args:
        predictions: ``[n, A]``. m: 0 is the plain mean; above 0 old chunks count more, below 0 new ones.

    Returns:
        ``[A]``, float64.

    source: ACT (arXiv 2304.13705), section 4.2 and its code, m = 0.01.
    """
    weights = np.exp(-m * np.arange(len(predictions), dtype=np.float64))
    return (weights[:, None] * predictions.astype(np.float64)).sum(0) / weights.sum()


class Chunks:
    """Chunks by the tick at which they were asked for; row i of a chunk is meant for i ticks later.

    Args:
        execute: rows of a chunk that are sent before the policy is asked again; at most the chunk's own length.
        m: temporal ensembling with this coefficient: the policy is asked at every tick; None is off.
    """

    def __init__(self, execute: int = 1, m: float | None = None) -> None:
        self.execute, self.m = execute, m
        self.asked: list[tuple[int, np.ndarray]] = []

    def wants(self, tick: int) -> bool:
        """Whether the policy is to be asked at ``tick``."""
        if self.m is not None or not self.asked:
            return True
        began, chunk = self.asked[-1]
        return tick - began >= min(self.execute, len(chunk))

    def add(self, tick: int, chunk: np.ndarray) -> None:
        """A chunk ``[K, A]`` for the observation of ``tick``; it may come later than that."""
        kept = [] if self.m is None else [entry for entry in self.asked if entry[0] + len(entry[1]) > tick]
        self.asked = [*kept, (tick, np.asarray(chunk))]

    def row(self, tick: int) -> np.ndarray:
        """``[A]`` for ``tick``. A chunk that came too late for it gives its last row."""
        if self.m is not None:
            about = [chunk[tick - began] for began, chunk in self.asked if tick - began < len(chunk)]
            if about:
                return ensemble(np.stack(about), self.m).astype(np.float32)
        began, chunk = self.asked[-1]
        return chunk[min(tick - began, len(chunk) - 1)]
