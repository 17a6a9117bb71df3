"""Clips: the windows of many episodes with everything that belongs to them, batched from memory-mapped columns.

Clips of one length are a bucket; a batch never mixes buckets, so nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from worldsim.core.errors import UserError, again
from worldsim.core.types import FrameStream
from worldsim.data import windows
from worldsim.data.columns import Column
from worldsim.data.transforms import Normalize
from worldsim.data.windows import WindowSpec

Transform = Callable[[np.ndarray], np.ndarray]


def stream_windows(stream: FrameStream, spec: WindowSpec, transform: Transform) -> Iterator[tuple[int, np.ndarray]]:
    """Every window of an episode in one sequential pass: ``(start, uint8 [F, H, W, 3])``, in order.

    Only frames that some window still needs are transformed and kept, so memory does not grow with the episode.
    """
    starts = list(windows.starts(stream.num_frames, spec))
    wanted = {int(row) for start in starts for row in windows.frame_rows(start, spec)}
    kept: dict[int, np.ndarray] = {}
    at = 0
    for block in stream.blocks():
        if not starts:
            return
        rows = [t for t in range(at, at + len(block)) if t in wanted]
        if rows:
            kept.update(zip(rows, transform(block[[t - at for t in rows]])))
        at += len(block)
        while starts and starts[0] + spec.span <= at:
            start = starts.pop(0)
            yield start, np.stack([kept[int(row)] for row in windows.frame_rows(start, spec)])
            for row in [t for t in kept if starts and t < starts[0]]:
                del kept[row]


@dataclass
class Clips:
    """One bucket of what a trainer draws from: clips of one length. A clip is one window of one episode.

    Attributes:
        spec: how windows were cut.
        starts: episode id -> first frames of its windows; entry i belongs to row i of the episode's window columns.
        actions: episode id -> action rows ``[T or T - 1, A]``, normalised, float32.
        columns: name in the batch -> window column.
        prompts: episode id -> key in ``texts``.
        texts: prompt key -> ``[L, D]`` unpadded; batches pad with zeros to ``text_tokens``.
    """

    spec: WindowSpec
    starts: dict[str, list[int]]
    actions: dict[str, np.ndarray]
    columns: dict[str, Column] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    texts: dict[str, np.ndarray] = field(default_factory=dict)
    text_tokens: int = 0

    def __post_init__(self) -> None:
        self.index = [(episode, row) for episode, starts in self.starts.items() for row in range(len(starts))]

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The clips at ``indices``: ``actions`` float32 ``[B, F - 1, r, A]``, each column's rows ``[B, …]`` in its dtype,
        and ``text`` ``[B, text_tokens, D]``."""
        chosen = [self.index[i] for i in indices.tolist()]
        cut = [windows.cut_actions(self.actions[e], self.starts[e][row], self.spec) for e, row in chosen]
        out = {"actions": np.stack(cut)}
        for name, column in self.columns.items():
            out[name] = np.stack([column.load(episode)[row] for episode, row in chosen])
        if self.texts:
            out["text"] = self._text([self.prompts[episode] for episode, _ in chosen])
        return out

    def _text(self, keys: list[str]) -> np.ndarray:
        like = next(iter(self.texts.values()))
        out = np.zeros((len(keys), self.text_tokens, like.shape[1]), like.dtype)
        for row, key in enumerate(keys):
            text = self.texts[key][: self.text_tokens]
            out[row, : len(text)] = text
        return out


@dataclass
class Buckets:
    """What a trainer draws from: clips numbered through all buckets, bucket after bucket.

    Attributes:
        clips: one entry per length; none is empty.
    """

    clips: list[Clips]

    @property
    def counts(self) -> list[int]:
        """Clips per bucket: what ``train.order.Order`` shares batches out by."""
        return [len(bucket) for bucket in self.clips]

    @property
    def episodes(self) -> list[str]:
        return sorted(episode for bucket in self.clips for episode in bucket.starts)

    def __len__(self) -> int:
        return sum(self.counts)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """:meth:`Clips.batch` of clips that share a bucket.

        Raises:
            ValueError: they do not, which the order of a training never asks for.
        """
        ends = np.cumsum(self.counts)
        buckets = np.unique(np.searchsorted(ends, indices, side="right"))
        if len(buckets) != 1:
            raise ValueError(f"clips {indices.tolist()} lie in several buckets, which end at {ends.tolist()}")
        at = int(buckets[0])
        return self.clips[at].batch(indices - (ends[at] - self.counts[at]))


def cut(lengths: Mapping[str, int], spec: WindowSpec, shorter: Sequence[int] = ()) -> dict[int, dict[str, list[int]]]:
    """Frames per clip -> window starts of each episode that belongs there, the longest clips first.

    Args:
        lengths: episode id -> source frames.
        shorter: other numbers of frames for episodes that hold no whole window; each gets the most that it holds.

    Raises:
        UserError: no episode is long enough; says how long the longest one is.
    """
    sizes = sorted({spec.frames, *shorter}, reverse=True)
    out: dict[int, dict[str, list[int]]] = {frames: {} for frames in sizes}
    for episode, count in lengths.items():
        for frames in sizes:
            found = list(windows.starts(count, replace(spec, frames=frames)))
            if found:
                out[frames][episode] = found
                break
    out = {frames: starts for frames, starts in out.items() if starts}
    if not out:
        least, longest = replace(spec, frames=sizes[-1]), max(lengths.values(), default=0)
        late = f", {least.delay} of them before a clip because of action_delay = {least.delay}" if least.delay else ""
        raise UserError(
            f"no episode has the {least.span + least.delay} source frames that clips of {least.frames} frames need "
            f"(one of every {least.stride} source frames is taken{late}); the longest has {longest}",
            _fitting(longest, least),
        )
    return out


def _fitting(longest: int, spec: WindowSpec) -> str | None:
    """What to change so that an episode of ``longest`` frames holds a clip: fewer frames, 4k + 1, or else no delay."""
    most = (longest - spec.delay - 1) // spec.stride + 1
    if most >= 5:
        return again(frames=most - (most - 1) % 4)
    return again(action_delay=0) if spec.delay and spec.span <= longest else None


def normalised(actions: Mapping[str, np.ndarray], normalize: Normalize) -> dict[str, np.ndarray]:
    """Whole episodes of rows, normalised once instead of clip by clip."""
    return {episode: normalize.forward(rows) for episode, rows in actions.items()}
