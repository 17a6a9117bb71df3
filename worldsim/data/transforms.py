"""Transforms between what lies on disk and what a network sees, each with its inverse.

The pair lives in one object, so training, imagination and the robot cannot drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from worldsim.core.errors import UserError
from worldsim.data.stats import Stats

Kind = Literal["mean-std", "quantile", "identity"]
SMALLEST_SCALE = 1e-6
"""A dimension that varies less than this (relative to its size) is constant: it is shifted, never scaled up."""


@dataclass(frozen=True)
class Normalize:
    """Rows in physical units <-> rows of about unit size: ``(x - shift) / scale``, clipped to ``±clip``.

    Attributes:
        shift, scale: float64 ``[D]``; scale > 0.
        clip: bound on the normalised value, or None; ``inverse`` cannot restore what was clipped.
        kind: how shift and scale were chosen; kept for the card.
    """

    shift: np.ndarray
    scale: np.ndarray
    clip: float | None = None
    kind: Kind = "mean-std"

    @classmethod
    def of(cls, stats: Stats, kind: Kind = "mean-std") -> Normalize:
        """``mean-std``: zero mean, unit deviation. ``quantile``: 1 % … 99 % onto -1 … 1, clipped to ±1.5."""
        if kind == "mean-std":
            shift, scale, clip = stats.mean, stats.std, None
        elif kind == "quantile":
            shift, scale, clip = (stats.q01 + stats.q99) / 2, (stats.q99 - stats.q01) / 2, 1.5
        else:
            shift, scale, clip = np.zeros(stats.dim), np.ones(stats.dim), None
        least = SMALLEST_SCALE * np.maximum(1.0, np.abs(shift))
        return cls(shift, np.where(scale < least, 1.0, scale), clip, kind)

    @property
    def dim(self) -> int:
        return len(self.shift)

    def forward(self, rows: np.ndarray) -> np.ndarray:
        """``[…, D]`` in physical units -> float32 ``[…, D]``."""
        if rows.shape[-1] != self.dim:
            raise UserError(f"an action row has {rows.shape[-1]} numbers where {self.dim} are expected")
        out = (rows.astype(np.float64) - self.shift) / self.scale
        return (out if self.clip is None else out.clip(-self.clip, self.clip)).astype(np.float32)

    def inverse(self, rows: np.ndarray) -> np.ndarray:
        """Normalised ``[…, D]`` -> float32 in physical units."""
        return (rows.astype(np.float64) * self.scale + self.shift).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "shift": self.shift.tolist(), "scale": self.scale.tolist(), "clip": self.clip}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Normalize:
        return cls(np.array(data["shift"], float), np.array(data["scale"], float), data["clip"], data["kind"])


@dataclass(frozen=True)
class Cover:
    """Frames of any size -> exactly ``height x width``: the largest centred cut of that shape, then one antialiased resize.

    Every frame of a clip, the given one included, goes through the same cut, so they stay aligned pixel by pixel.
    """

    height: int
    width: int

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The cut in source pixels: left, top, right, bottom."""
        scale = min(height / self.height, width / self.width)
        cut_h, cut_w = self.height * scale, self.width * scale
        left, top = (width - cut_w) / 2, (height - cut_h) / 2
        return left, top, left + cut_w, top + cut_h

    def forward(self, frames: np.ndarray) -> np.ndarray:
        """uint8 ``[T, H, W, 3]`` -> uint8 ``[T, height, width, 3]``; the very frames when nothing has to change."""
        if frames.shape[1:3] == (self.height, self.width):
            return frames
        box = self.box(*frames.shape[1:3])
        out = np.empty((len(frames), self.height, self.width, 3), np.uint8)
        for t, frame in enumerate(frames):
            image = Image.fromarray(np.ascontiguousarray(frame))
            out[t] = np.asarray(image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=box))
        return out

    def inverse(self, frames: np.ndarray, height: int, width: int) -> np.ndarray:
        """Back into a ``height x width`` canvas, black where the cut had removed pixels."""
        left, top, right, bottom = (round(edge) for edge in self.box(height, width))
        out = np.zeros((len(frames), height, width, 3), np.uint8)
        for t, frame in enumerate(frames):
            image = Image.fromarray(frame).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
            out[t, top:bottom, left:right] = np.asarray(image)
        return out


def to_unit(frames: np.ndarray) -> np.ndarray:
    """uint8 ``[…, T, H, W, 3]`` -> float32 ``[…, 3, T, H, W]`` in -1 … 1: what video VAEs take."""
    return np.moveaxis(frames, -1, -4).astype(np.float32) / 127.5 - 1.0


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Inverse of :func:`to_unit`, rounded and clipped to 0 … 255.

    Raises:
        UserError: a number is not finite; as a pixel it would be garbage.
    """
    if not np.isfinite(video).all():
        raise UserError(
            "the decoded frames hold numbers that are not finite: the weights of the model or of its base are damaged, or "
            "guidance is far too strong",
            "worldsim infer DATA --model RUN --set guidance=1",
        )
    return np.moveaxis(np.rint((video + 1.0) * 127.5).clip(0, 255), -4, -1).astype(np.uint8)
