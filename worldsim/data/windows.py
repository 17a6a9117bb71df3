"""Windows: the one place where frames and actions of an episode are cut to match.

``actions[t]`` acts between frame ``t`` and frame ``t + 1``. A window of F frames taken every ``stride`` source frames
therefore owns ``(F - 1) * stride`` action rows, ``[F - 1, stride, A]``: none is dropped, none is averaged, and the row
after the last frame is never touched, so episodes with T rows and with T - 1 rows give the same windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from worldsim.core.errors import BadEpisode, UserError, again


@dataclass(frozen=True)
class WindowSpec:
    """How windows are cut.

    Attributes:
        frames: F, frames per window.
        stride: source frames from one window frame to the next (>= 1).
        hop: source frames from one window's start to the next one's (>= 1).
        delay: rows by which an action's visible effect lags behind it; frame pair (t, t + 1) is given row t - delay.
    """

    frames: int
    stride: int = 1
    hop: int = 1
    delay: int = 0

    def __post_init__(self) -> None:
        if self.frames < 2 or self.stride < 1 or self.hop < 1 or self.delay < 0:
            raise UserError(
                "a window needs at least 2 frames, stride and hop of at least 1 and no negative action_delay; here they are "
                f"{self.frames}, {self.stride}, {self.hop} and {self.delay}"
            )

    @property
    def span(self) -> int:
        """Source frames from a window's first frame to its last, both included."""
        return (self.frames - 1) * self.stride + 1


def starts(num_frames: int, spec: WindowSpec) -> range:
    """Every legal first frame in an episode of ``num_frames``; empty when the episode is too short."""
    return range(min(spec.delay, num_frames), num_frames - spec.span + 1, spec.hop)


def frame_rows(start: int, spec: WindowSpec) -> np.ndarray:
    """Source frames of the window, int64 ``[F]``."""
    return start + spec.stride * np.arange(spec.frames)


def action_rows(start: int, spec: WindowSpec) -> np.ndarray:
    """Source action rows between the window's frames, int64 ``[F - 1, stride]``."""
    rows = start - spec.delay + np.arange((spec.frames - 1) * spec.stride)
    return rows.reshape(spec.frames - 1, spec.stride)


def cut_actions(actions: np.ndarray, start: int, spec: WindowSpec) -> np.ndarray:
    """The actions that lead from each frame of the window to the next, ``[F - 1, stride, A]``, in the source's dtype."""
    rows = action_rows(start, spec)
    if rows.min() < 0 or rows.max() >= len(actions):
        raise UserError(
            f"a window from frame {start} needs action rows {rows.min()}..{rows.max()}; there are {len(actions)}"
        )
    return actions[rows]


def index(lengths: Mapping[str, int], spec: WindowSpec) -> Iterator[tuple[str, int]]:
    """(episode id, first frame) of every window, in order."""
    for episode, num_frames in lengths.items():
        for start in starts(num_frames, spec):
            yield episode, start


def require_rows(episode: str, num_frames: int, num_actions: int) -> None:
    """An episode records T or T - 1 action rows; anything else cannot be aligned."""
    if num_actions not in (num_frames, num_frames - 1):
        raise BadEpisode(
            episode, f"{num_frames} frames but {num_actions} actions; expected {num_frames} or {num_frames - 1}"
        )


def stride_for(source_fps: float, wanted_fps: float | None) -> int:
    """Source frames per window frame for a wanted rate; the ratio must be whole, because frames are never invented."""
    if wanted_fps is None:
        return 1
    ratio = source_fps / wanted_fps
    stride = round(ratio)
    if stride < 1 or abs(ratio - stride) > 1e-3 * stride:
        possible = ", ".join(f"{source_fps / k:g}" for k in range(1, 7))
        raise UserError(
            f"--fps {wanted_fps:g} does not divide the dataset's {source_fps:g} fps; possible: {possible}",
            again(fps=f"{source_fps / max(1, stride):g}"),
        )
    return stride
