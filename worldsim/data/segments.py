"""Frames without actions: a context frame and some of those that follow it, to learn a tokenizer from.

Which ones follows from numbers alone (``data.windows`` cuts the rows); pixels come from memory where all of them fit there,
else from the dataset itself, whatever its format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from worldsim.core.errors import UserError
from worldsim.data.windows import WindowSpec, frame_rows, starts


@dataclass(frozen=True)
class SegmentSpec:
    """How segments are cut.

    Attributes:
        targets: frames beside the context frame. horizon: frames that they are drawn from, the context frame itself
            included, because a rollout may begin at its own context frame; a shorter rest of an episode will do.
        stride: source frames from one frame to the next.
    """

    targets: int
    horizon: int
    stride: int = 1

    def __post_init__(self) -> None:
        if self.targets < 1 or self.horizon < 2 or self.stride < 1:
            raise UserError(
                f"a segment needs at least 1 target, a horizon of at least 2 and a stride of at least 1: {self}"
            )


class Segments:
    """Every (episode, context frame) that has at least one frame after it, numbered.

    Args:
        lengths: episode id -> source frames.
        read: (episode id, rows int64) -> uint8 ``[len(rows), H, W, 3]``.
    """

    def __init__(
        self, lengths: Mapping[str, int], spec: SegmentSpec, read: Callable[[str, np.ndarray], np.ndarray]
    ) -> None:
        self.lengths, self.spec, self.read = dict(lengths), spec, read
        pair = WindowSpec(2, spec.stride)
        self.index = [(episode, start) for episode, count in lengths.items() for start in starts(count, pair)]

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, number: int, seed: int) -> tuple[str, np.ndarray]:
        """Segment ``number`` with targets drawn by ``seed``: its episode and source frames, int64 ``[1 + targets]``, the
        context first and the targets in order of time. A target comes twice only where there are too few."""
        episode, start = self.index[number]
        within = min(self.spec.horizon, (self.lengths[episode] - 1 - start) // self.spec.stride + 1)
        rows = frame_rows(start, WindowSpec(within, self.spec.stride))
        rng = np.random.default_rng(seed)
        drawn = rng.choice(within, self.spec.targets, replace=within < self.spec.targets)
        return episode, rows[[0, *sorted(drawn.tolist())]]

    def frames(self, number: int, seed: int) -> np.ndarray:
        """uint8 ``[1 + targets, H, W, 3]``."""
        return self.read(*self.rows(number, seed))
