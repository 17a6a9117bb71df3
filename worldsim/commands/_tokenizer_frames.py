"""From a dataset and a config to the frames that a tokenizer is trained on and measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.core.console import progress
from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.protocols import EpisodeSource
from worldsim.core.types import CameraInfo, FrameStream
from worldsim.data import cameras
from worldsim.data.segments import Segments, SegmentSpec
from worldsim.data.split import split_episodes
from worldsim.data.transforms import Cover
from worldsim.data.windows import stride_for


@dataclass(frozen=True)
class Wish:
    """The part of the config that chooses frames; the meaning of each entry stands in ``_train_tokenizer.Common``.

    Attributes:
        check: called with the chosen height and width; raises where the net cannot have them.
    """

    data: Path
    camera: str | None
    fps: float | None
    size: tuple[int, int] | None
    targets: int
    horizon: int
    cache_gib: float
    max_rejected: int
    check: Callable[[int, int], Any]


@dataclass
class Chosen:
    """What is trained on: train and held-out segments, and what was decided for the user."""

    train: Segments
    held_out: Segments
    camera: str
    fps: float
    height: int
    width: int
    rejected: list[BadEpisode]
    notes: list[str]


def choose(wish: Wish, source: EpisodeSource, decode: bool = True) -> Chosen:
    """Decide camera, size and rate, and read what fits into memory.

    Args:
        decode: False looks at lengths alone; pixels are then read as they are asked for.

    Raises:
        UserError: nothing fits; names the key and what would.
    """
    camera = _camera(wish, source)
    height, width = wish.size or (camera.height, camera.width)
    wish.check(height, width)
    stride = stride_for(source.card.fps, wish.fps)
    split = split_episodes(source.ids(), source.card.splits)
    frames = Frames(source, camera.name, Cover(height, width))
    train, held_out = frames.survey(split.train), frames.survey(split.held_out)
    size = frames.gib(train)
    if decode and size <= wish.cache_gib:
        frames.keep(train)
    rejected = [bad for bad in frames.rejected if bad.episode in set(split.train)]
    train = {name: count for name, count in train.items() if name not in {bad.episode for bad in rejected}}
    refuse(wish, rejected, len(split.train))
    spec = SegmentSpec(wish.targets, wish.horizon, stride)
    chosen = Chosen(
        Segments(train, spec, frames.read),
        Segments(held_out, spec, frames.read),
        camera.name,
        source.card.fps / stride,
        height,
        width,
        rejected,
        _notes(wish, source, camera, frames, size),
    )
    if not len(chosen.train):
        raise UserError(f"no train episode of {wish.data} has two frames to learn from", ["worldsim", "doctor", wish.data])
    return chosen


def refuse(wish: Wish, rejected: list[BadEpisode], count: int) -> None:
    """
    Raises:
        UserError: more of ``count`` train episodes were lost than ``max_rejected`` allows, or all of them.
    """
    if not rejected or len(rejected) <= min(wish.max_rejected, count - 1):
        return
    accept = f"worldsim train {wish.data} … --set max_rejected={len(rejected)}"
    raise UserError(
        f"{len(rejected)} of {count} train episodes cannot be used, the first is {rejected[0].episode}: "
        f"{rejected[0].reason}",
        accept if len(rejected) < count else ["worldsim", "doctor", wish.data],
    )


def _camera(wish: Wish, source: EpisodeSource) -> CameraInfo:
    """The named camera, or a stack of several (``a+b``), else the first by name."""
    known = source.card.camera_names
    if not known:
        raise UserError(f"the dataset {wish.data} has no camera", "worldsim doctor DATA")
    command = f"worldsim train --camera {min(known)}"
    names = cameras.require_cameras(wish.camera or min(known), known, f"the dataset {source.card.name}", command)
    return cameras.stacked_info(cameras.JOIN.join(names), source.card.cameras)


def _notes(wish: Wish, source: EpisodeSource, camera: CameraInfo, frames: Frames, size: float) -> list[str]:
    """What was decided for the user."""
    out = [f"episode {bad.episode} was left out: {bad.reason}" for bad in frames.rejected]
    others = [name for name in source.card.camera_names if name != camera.name]
    if others and wish.camera is None:
        out.append(f"trained on camera '{camera.name}', the first by name; the others are {', '.join(others)}")
    if size > wish.cache_gib:
        out.append(f"the frames take {size:.2g} GiB, more than cache_gib = {wish.cache_gib:g}: read as needed")
    return out


class Frames:
    """Pixels of one camera at one size, from memory or from the dataset."""

    def __init__(self, source: EpisodeSource, camera: str, cover: Cover) -> None:
        self.source, self.camera, self.cover = source, camera, cover
        self.at = {name: index for index, name in enumerate(source.ids())}
        self.kept: dict[str, np.ndarray] = {}
        self.rejected: list[BadEpisode] = []

    def survey(self, episodes: list[str]) -> dict[str, int]:
        """Lengths, without decoding; the bad ones apart."""
        out: dict[str, int] = {}
        for name in episodes:
            try:
                out[name] = self._stream(name).num_frames
            except BadEpisode as bad:
                self.rejected.append(bad)
        return out

    def gib(self, lengths: Mapping[str, int]) -> float:
        """What their frames take at the wanted size."""
        return sum(lengths.values()) * self.cover.height * self.cover.width * 3 / 2**30

    def keep(self, lengths: Mapping[str, int]) -> None:
        """Decode all of them once, into memory; the bad ones apart."""
        with progress("read frames", len(lengths), unit="episodes") as bar:
            for name in lengths:
                try:
                    self.kept[name] = np.concatenate([self.cover.forward(block) for block in self._stream(name).blocks()])
                except BadEpisode as bad:
                    self.rejected.append(bad)
                bar.advance()

    def read(self, episode: str, rows: np.ndarray) -> np.ndarray:
        """uint8 ``[len(rows), height, width, 3]``."""
        if episode in self.kept:
            return self.kept[episode][rows]
        return self.cover.forward(self._stream(episode).rows(rows))

    def _stream(self, episode: str) -> FrameStream:
        cover = self.cover
        return cameras.camera_stream(self.source.episode(self.at[episode]), self.camera, cover.height, cover.width)
