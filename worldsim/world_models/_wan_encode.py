"""The encode phase: what frozen encoders see of clips and prompts, as columns. The trainer reads these and loads none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.core.errors import BadEpisode
from worldsim.core.types import BLOCK_FRAMES, FrameStream
from worldsim.data import columns
from worldsim.data.batches import stream_windows
from worldsim.data.columns import Column, ColumnSpec
from worldsim.data.transforms import Cover
from worldsim.data.windows import WindowSpec, starts
from worldsim.encoders.umt5 import clean
from worldsim.encoders.wan_vae import PACK, WanVAE
from worldsim.world_models._wan_geometries import Base

STORED = np.float16
"""Normalised latents and token features are about unit size: fp16 keeps three digits more than the bf16 they meet."""


@dataclass(frozen=True)
class ClipPlan:
    """Which clips of which camera, at which size.

    Attributes:
        dataset: the dataset's fingerprint.
        histories: numbers of given latents that training draws from, ascending, starting with 1.
    """

    dataset: str
    camera: str
    height: int
    width: int
    window: WindowSpec
    histories: tuple[int, ...]

    @property
    def cover(self) -> Cover:
        return Cover(self.height, self.width)


def given_frames(latents: int) -> int:
    """Frames that ``latents`` given latents stand for: 1, 5, 9, …"""
    return 1 + PACK * (latents - 1)


def window_specs(base: Base, plan: ClipPlan) -> dict[str, ColumnSpec]:
    """Name in the batch -> the window columns that this base needs."""
    clip = {"camera": plan.camera, "height": plan.height, "width": plan.width, **asdict(plan.window)}
    made_from = {"dataset": plan.dataset, "weights": weights_of(base)}
    out = {"latents": ColumnSpec("latents", "wan-vae", "window", clip, made_from)}
    if base.geometry.family == "i2v":
        params = {**clip, "histories": list(plan.histories)}
        out["condition"] = ColumnSpec("condition", "wan-vae", "window", params, made_from)
    if base.geometry.sees_image:
        out["image"] = ColumnSpec("image", "clip", "window", clip, made_from)
    return out


def text_spec(base: Base) -> ColumnSpec:
    """The prompt column: one file per text, shared by every dataset of the folder."""
    return ColumnSpec("text", "umt5", "prompt", {}, {"weights": weights_of(base)})


def weights_of(base: Base) -> str:
    """What the encoders' weights are identified by."""
    return base.revision or f"random:{base.geometry.name}"


class Encoders:
    """A base's frozen encoders on a device, each loaded when it is first needed, and once."""

    def __init__(self, base: Base, device: str) -> None:
        self.base, self.device = base, device
        self._loaded: dict[str, Any] = {}

    def of(self, column: str) -> Any:
        """What fills the window column ``column``."""
        name = "image_encoder" if column == "image" else "vae"
        if name not in self._loaded:
            self._loaded[name] = getattr(self.base, name)(self.device)
        return self._loaded[name]


def encode_windows(
    root: Path,
    encoders: Encoders,
    plan: ClipPlan,
    streams: Mapping[str, Any],
    batch: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    reject: Callable[[BadEpisode], None] | None = None,
) -> dict[str, Column]:
    """Fill this rank's share of the window columns; an encoder is loaded only when one of its entries is missing.

    Args:
        streams: episode id -> a function that opens the camera's :class:`FrameStream`.
        batch: clips per forward pass of an encoder.
        reject: told of each bad episode, which then has no entry.
    """
    share = {"rank": rank, "world_size": world_size}
    out = {}
    for name, spec in window_specs(encoders.base, plan).items():

        def encode(key: str, name: str = name) -> np.ndarray:
            return _encode(name, encoders.of(name), plan, streams[key](), batch)

        out[name] = columns.ensure(root, spec, streams, encode, **share, title=f"encode {name}", reject=reject)
    return out


def _encode(name: str, encoder: Any, plan: ClipPlan, stream: FrameStream, batch: int) -> np.ndarray:
    """One episode's rows of one column, fp16 ``[windows, …]``."""
    kind = {"latents": _latents, "condition": _condition, "image": _image}[name]
    clips = _first_frames(plan, stream) if name == "image" else stream_windows(stream, plan.window, plan.cover.forward)
    parts, waiting = [], []
    for _, frames in clips:
        waiting.append(frames)
        if len(waiting) == batch:
            parts.append(kind(encoder, plan, np.stack(waiting)).astype(STORED))
            waiting = []
    if waiting:
        parts.append(kind(encoder, plan, np.stack(waiting)).astype(STORED))
    return np.concatenate(parts)


def _first_frames(plan: ClipPlan, stream: FrameStream) -> Iterator[tuple[int, np.ndarray]]:
    """``(start, uint8 [1, H, W, 3])`` of every window: all that the picture encoder looks at, so no other is decoded."""
    every = starts(stream.num_frames, plan.window)
    for at in range(0, len(every), BLOCK_FRAMES):
        some = every[at : at + BLOCK_FRAMES]
        for start, frame in zip(some, plan.cover.forward(stream.rows(list(some)))):
            yield start, frame[None]


def _latents(vae: WanVAE, plan: ClipPlan, frames: np.ndarray) -> np.ndarray:
    """``[B, z, F', h, w]``"""
    return vae.encode(frames)


def _condition(vae: WanVAE, plan: ClipPlan, frames: np.ndarray) -> np.ndarray:
    """``[B, M, z, F', h, w]``, one per possible history."""
    given = [vae.encode(frames[:, : given_frames(m)], pad_to=plan.window.frames) for m in plan.histories]
    return np.stack(given, axis=1)


def _image(clip: Any, plan: ClipPlan, frames: np.ndarray) -> np.ndarray:
    """``[B, tokens, D]`` of each clip's first frame."""
    return clip.encode(frames[:, 0])


def encode_texts(
    root: Path, base: Base, texts: Iterable[str], device: str, *, rank: int = 0, world_size: int = 1
) -> tuple[Column, dict[str, str]]:
    """Fill the prompt column for these texts; returns it with cleaned text -> key. Equal texts are encoded once."""
    keys = {text: columns.prompt_key(text) for text in map(clean, texts)}
    by_key = {key: text for text, key in keys.items()}
    spec = text_spec(base)
    encoder: Any = None
    if columns.missing(root, spec, sorted(by_key)[rank::world_size]):
        encoder = base.text_encoder(device)

    def encode(key: str) -> np.ndarray:
        return encoder.encode(by_key[key]).astype(STORED)

    column = columns.ensure(root, spec, by_key, encode, rank=rank, world_size=world_size, title="encode text")
    return column, keys
