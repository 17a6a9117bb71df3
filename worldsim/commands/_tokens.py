"""Tokens of a dataset as columns: ``tokenize-world`` writes them, token world models are trained and reinforced on them.

A per-frame tokenizer gives one column ``[T, L]``. A context-conditioned one gives two: the tokens of every frame as a context,
``[T, Lc]``, and what is seen from there, ``[T, reach, L]``: entry ``[t, k]`` is frame ``t + k * stride`` told relative to frame
``t``. Entries beyond an episode's end are ``ABSENT``. All are uint16. Columns are keyed by the content of the dataset and of
the tokenizer, so neither can change unnoticed; a token model's own copy of its tokenizer finds the same columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.protocols import EpisodeSource
from worldsim.core.types import FrameStream
from worldsim.data import columns
from worldsim.data.cameras import camera_stream
from worldsim.data.columns import Column, ColumnSpec
from worldsim.data.transforms import Cover

KIND = "tokens"
ABSENT = np.iinfo(np.uint16).max
FRAMES, CONTEXT, DYNAMICS = "frames", "context", "dynamics"


@dataclass(frozen=True)
class Cut:
    """What of a dataset is tokenised.

    Attributes:
        camera: which one, or several stacked (``a+b``).
        stride: source frames from one frame of a model to its next.
        reach: frames told from each context frame, itself included; 1 for a per-frame tokenizer.
    """

    camera: str
    stride: int = 1
    reach: int = 1


@dataclass
class Tokens:
    """Columns opened for reading, and the episodes that could not be tokenised."""

    cut: Cut
    frames: Column
    context: Column | None = None
    rejected: dict[str, str] = field(default_factory=dict)

    def __contains__(self, episode: str) -> bool:
        return episode in self.frames and (self.context is None or episode in self.context)

    def window(self, episode: str, start: int, count: int, back: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Context tokens int64 ``[Lc]`` (Lc = 0 without a context) and tokens int64 ``[count, L]`` of the frames ``start``,
        ``start + stride``, ….

        Args:
            back: the context frame lies so many strides before ``start``.
        """
        stride, own = self.cut.stride, self.frames.load(episode)
        if self.context is None:
            return np.zeros(0, np.int64), own[start : start + count * stride : stride].astype(np.int64)
        at = start - back * stride
        if at < 0 or back + count > own.shape[1]:
            raise ValueError(f"frame {at} tells {own.shape[1]} frames, not those from {back} to {back + count}")
        seen = own[at, back : back + count].astype(np.int64)
        if (seen == ABSENT).any():
            raise ValueError(f"{episode}: a window from frame {start} reaches beyond the episode")
        return self.context.load(episode)[at].astype(np.int64), seen


def digest_of(tokenizer: Any) -> str:
    """12 hex digits of a tokenizer's weights, wherever they lie: a token model's own copy has those of the original."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()[:12]


def specs(tokenizer: Any, dataset: str, cut: Cut) -> dict[str, ColumnSpec]:
    """The columns of a tokenizer on a dataset, by part.

    Args:
        tokenizer: an object of the shelf ``tokenizers``. dataset: the dataset's fingerprint.
    """
    name = tokenizer.card()["tokenizer"].replace("_", "-")
    inputs = {"dataset": dataset, "checkpoint": digest_of(tokenizer)}
    shared = {"camera": cut.camera, "height": tokenizer.height, "width": tokenizer.width, "codes": tokenizer.codes}

    def spec(part: str, **more: Any) -> ColumnSpec:
        return ColumnSpec(KIND, name, "frame", {**shared, "part": part, **more}, inputs)

    if not tokenizer.context_tokens:
        return {FRAMES: spec(FRAMES)}
    return {CONTEXT: spec(CONTEXT), DYNAMICS: spec(DYNAMICS, stride=cut.stride, reach=cut.reach)}


def fill(
    root: Path,
    source: EpisodeSource,
    tokenizer: Any,
    found: dict[str, ColumnSpec],
    cut: Cut,
    episodes: Iterable[str],
    device: str,
    *,
    batch: int = 16,
    rank: int = 0,
    world_size: int = 1,
) -> Tokens:
    """Tokenise what is missing of this rank's share. Finished episodes are kept, so a killed run continues.

    Args:
        tokenizer: on ``device``. found: of :func:`specs`. batch: frames per forward pass.
    """
    at = {name: index for index, name in enumerate(source.ids())}
    wanted, rejected = list(episodes), {}

    def reject(bad: BadEpisode) -> None:
        rejected[bad.episode] = bad.reason

    def ensure(part: str, encode: Callable[[FrameStream], np.ndarray]) -> Column:
        def one(episode: str) -> np.ndarray:
            return encode(camera_stream(source.episode(at[episode]), cut.camera, tokenizer.height, tokenizer.width))

        share = {"rank": rank, "world_size": world_size}
        return columns.ensure(root, found[part], wanted, one, **share, title=f"tokens: {part}", reject=reject)

    encoder = Encoder(tokenizer, cut, device, batch)
    if FRAMES in found:
        return Tokens(cut, ensure(FRAMES, encoder.frames), rejected=rejected)
    context = ensure(CONTEXT, encoder.context)
    return Tokens(cut, ensure(DYNAMICS, encoder.dynamics), context, rejected)


def opened(root: Path, found: dict[str, ColumnSpec], cut: Cut) -> Tokens:
    """The columns as they are on disk; for ranks that waited while others filled them."""
    context = Column(root / found[CONTEXT].path) if CONTEXT in found else None
    return Tokens(cut, Column(root / found[FRAMES if FRAMES in found else DYNAMICS].path), context)


def missing(root: Path, found: dict[str, ColumnSpec], episodes: Iterable[str]) -> list[str]:
    """Episodes that :func:`fill` would still have to tokenise."""
    names = list(episodes)
    return sorted({name for spec in found.values() for name in columns.missing(root, spec, names)})


@dataclass(frozen=True)
class Encoder:
    """Frames of one episode into tokens, streamed: memory does not grow with the episode."""

    tokenizer: Any
    cut: Cut
    device: str
    batch: int

    @torch.no_grad()
    def frames(self, stream: FrameStream) -> np.ndarray:
        """uint16 ``[T, L]``."""
        parts = [self.tokenizer.encode(self._torch(part)[None], None)[0] for part in self._blocks(stream, self.batch)]
        return _uint16(torch.cat(parts))

    @torch.no_grad()
    def context(self, stream: FrameStream) -> np.ndarray:
        """uint16 ``[T, Lc]``."""
        parts = [self.tokenizer.encode_context(self._torch(part)) for part in self._blocks(stream, self.batch)]
        return _uint16(torch.cat(parts))

    @torch.no_grad()
    def dynamics(self, stream: FrameStream) -> np.ndarray:
        """uint16 ``[T, reach, L]``; ``ABSENT`` where the episode has ended."""
        cut, total = self.cut, stream.num_frames
        group = max(1, self.batch // cut.reach)
        ahead = (cut.reach - 1) * cut.stride
        parts: list[np.ndarray] = []
        first, waiting = 0, np.empty((0, self.tokenizer.height, self.tokenizer.width, 3), np.uint8)
        for block in self._blocks(stream, self.batch):
            waiting = np.concatenate([waiting, block])
            while first < total and first + len(waiting) >= min(first + group + ahead, total):
                count = min(group, total - first)
                parts.append(self._seen(waiting, first, count, total))
                first, waiting = first + count, waiting[count:]
        return np.concatenate(parts)

    def _seen(self, frames: np.ndarray, first: int, count: int, total: int) -> np.ndarray:
        """Tokens ``[count, reach, L]`` told from the first ``count`` of ``frames``, which begin at source frame ``first``."""
        rows = np.arange(count)[:, None] + self.cut.stride * np.arange(self.cut.reach)
        inside = first + rows < total
        told = self._torch(frames[np.minimum(rows, total - 1 - first)])
        tokens = _uint16(self.tokenizer.encode(told, self._torch(frames[:count])))
        return np.where(inside[..., None], tokens, np.uint16(ABSENT))

    def _blocks(self, stream: FrameStream, size: int) -> Iterator[np.ndarray]:
        cover = Cover(self.tokenizer.height, self.tokenizer.width)
        for block in stream.blocks():
            for at in range(0, len(block), size):
                yield cover.forward(block[at : at + size])

    def _torch(self, frames: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(frames)).to(self.device)


def _uint16(tokens: torch.Tensor) -> np.ndarray:
    out = tokens.cpu().numpy()
    if out.size and out.max() >= ABSENT:
        raise UserError(f"code {out.max()} does not fit a column of tokens: codes must lie below {ABSENT}")
    return out.astype(np.uint16)
