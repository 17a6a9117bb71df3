"""The face of a frozen vision backbone: uint8 frames in, features of patches (and of the whole picture) out.

Frames are prepared inside, once; nobody else divides by 255. :func:`load` finds one by what a user types: a registered name
(``random-conv``), a Hugging Face repository (``facebook/dinov2-base``) or a folder with such a model. ``tokenizer:RUN`` is the
business of who may load tokenizers: those wrap one in :class:`~worldsim.encoders._codes.Codes`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from worldsim.core import registry
from worldsim.core.errors import UserError, again, did_you_mean
from worldsim.encoders._preparation import Preparation

POOLINGS = "auto, cls, mean or grid1 … grid16"
FROM_TOKENIZER = "tokenizer:"


class Features(NamedTuple):
    """float32 ``patches [B, P, d]``, row by row, and ``summary [B, D]`` of the whole picture; None where there is none."""

    patches: Tensor
    summary: Tensor | None


class VisionEncoder(nn.Module):
    """A frozen backbone. Subclasses set the attributes and write :meth:`features`.

    Attributes:
        module: the net. preparation: how frames become its input.
        name: registered. source: what :func:`load` was given. revision: which weights: a commit, or a digest of them.
        grid: rows and columns of patches. dim: d, of a patch. summary_dim: D, of the whole picture; 0 where there is none.
    """

    module: nn.Module
    preparation: Preparation
    name: str
    source: str
    revision: str
    grid: tuple[int, int]
    dim: int
    summary_dim: int

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def view(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 ``[B, H, W, 3]`` -> uint8 ``[B, 3, h, w]``: the part of the frames that is looked at, at the size it is."""
        return self.preparation.view(frames)

    def features(self, view: Tensor) -> Features:
        """Of what :meth:`view` gave, on the module's device."""
        raise NotImplementedError

    def forward(self, frames: np.ndarray | Tensor) -> Features:
        """uint8 ``[B, H, W, 3]`` -> features on the module's device."""
        return self.features(self.view(frames))

    def shape(self, pooling: str) -> tuple[int, int, int]:
        """Rows and columns of positions, and the width of each, that :meth:`pool` gives.

        Raises:
            UserError: there is no such pooling, or it needs a summary where there is none.
        """
        kind, side = self._pooling(pooling)
        return (1, 1, self.summary_dim) if kind == "cls" else (side, side, self.dim)

    def pool(self, features: Features, pooling: str = "auto") -> Tensor:
        """float32 ``[B, P, d]``.

        Args:
            pooling: ``cls``: the backbone's own summary of the picture, P = 1 (a class token, a pooler); ``mean`` of all
                patches, P = 1; ``gridN``: the patches averaged to N x N positions; ``auto``: ``cls`` where there is one,
                else ``mean``.
        """
        kind, side = self._pooling(pooling)
        if kind == "cls":
            assert features.summary is not None
            return features.summary[:, None]
        if side == 1:
            return features.patches.mean(1, keepdim=True)
        maps = features.patches.movedim(1, 2).unflatten(2, self.grid)
        return adaptive_avg_pool2d(maps, side).flatten(2).movedim(1, 2)

    def pooled(self, frames: np.ndarray | Tensor, pooling: str = "auto") -> Tensor:
        """uint8 ``[B, H, W, 3]`` -> float32 ``[B, P, d]``."""
        return self.pool(self(frames), pooling)

    def _pooling(self, pooling: str) -> tuple[str, int]:
        if pooling == "auto":
            pooling = "cls" if self.summary_dim else "mean"
        if pooling == "cls" and self.summary_dim:
            return "cls", 1
        if pooling == "cls":
            raise UserError(f"{self.source} has no summary of a picture: pooling cls is not there", again(pooling="mean"))
        side = grid_side(pooling)
        if side > min(self.grid):
            raise UserError(
                f"pooling {pooling} is finer than the {self.grid[0]}x{self.grid[1]} patches of {self.source}",
                again(pooling=f"grid{min(self.grid)}"),
            )
        return "grid", side


def grid_side(pooling: str) -> int:
    """``mean`` -> 1, ``grid4`` -> 4.

    Raises:
        UserError: there is no such pooling.
    """
    if pooling == "mean":
        return 1
    match = re.fullmatch(r"grid([1-9]\d?)", pooling)
    if match is None or int(match[1]) > 16:
        raise UserError(f"there is no pooling '{pooling}': it is {POOLINGS}", again(pooling="auto"))
    return int(match[1])


def names() -> list[str]:
    """Registered vision backbones; imports nothing."""
    return [name for name in registry.names("encoders") if (registry.card("encoders", name) or {}).get("kind") == "vision"]


def load(text: str, device: str | torch.device = "cpu", revision: str | None = None) -> VisionEncoder:
    """A backbone by a registered name, a Hugging Face repository or a folder; frozen, in eval mode, on ``device``.

    Args:
        revision: which weights they must be, as :attr:`VisionEncoder.revision` said when something was made with them.

    Raises:
        UserError: there is none, it cannot be read here, or its weights are others than ``revision``.
    """
    encoder = _found(text, revision)
    if revision is not None and encoder.revision != revision:
        raise UserError(f"{text} has changed: its weights are {encoder.revision}, but {revision} were used", again())
    return encoder.to(device).eval().requires_grad_(False)


def _found(text: str, revision: str | None) -> VisionEncoder:
    from worldsim.encoders import _hf

    if text in names() or text.replace("_", "-") in names():
        plugin: Any = registry.get("encoders", text)
        return plugin.create(revision)
    if Path(text).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return _hf.load(text, revision)
    raise UserError(
        f"there is no vision model '{text}'{did_you_mean(text, names())}; or a Hugging Face repository, or a folder",
        again(vision_model="facebook/dinov2-base"),
    )
