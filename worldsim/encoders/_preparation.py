"""uint8 frames into what a vision backbone was trained on: one resize, one cut, one normalisation, for a whole batch at once.

The numbers come from the processor's own file, and the arithmetic is that of transformers' torchvision processors, so a batch
here equals their output frame by frame. Frames enter as uint8 0 … 255 and are divided by 255 exactly once: the processors also
take floats in 0 … 1 and divide those again, which gave near-black pictures in the experiment that this follows.

# source: transformers 5, image_processing_backends.TorchvisionBackend (resize, center_crop, rescale_and_normalize)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as pictures

from worldsim.core.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the filters, which processors' files hold."""


@dataclass(frozen=True)
class Preparation:
    """How frames become input.

    Attributes:
        size: (height, width) to resize to; (shortest,) keeps the aspect; None leaves the size.
        crop: (height, width) of the centred cut after it; None cuts nothing.
        mean, std: of each channel in 0 … 1.
        filter: of the resize, antialiased.
    """

    size: tuple[int, ...] | None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    filter: str = "bicubic"

    @property
    def input(self) -> tuple[int, int]:
        """Height and width that a network is given.

        Raises:
            UserError: they follow from the frames, so frames of two sizes would give two grids.
        """
        if self.crop is not None:
            return self.crop
        if self.size is None or len(self.size) != 2:
            raise UserError(
                "the backbone's processor gives inputs of no fixed size: its file has neither crop_size nor size"
            )
        return self.size[0], self.size[1]

    def view(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 ``[B, H, W, 3]`` -> uint8 ``[B, 3, h, w]``: what the network looks at, still as a picture.

        Raises:
            UserError: frames of another dtype or layout; floats would be divided by 255 a second time.
        """
        batch = torch.from_numpy(np.require(frames, requirements=["C", "W"])) if isinstance(frames, np.ndarray) else frames
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
            kind, shape = str(batch.dtype).removeprefix("torch."), "x".join(map(str, batch.shape))
            raise UserError(f"a vision encoder takes uint8 frames [B, H, W, 3], but was given {kind} of {shape}")
        batch = batch.permute(0, 3, 1, 2)
        if self.size is not None:
            batch = pictures.resize(batch, list(self.size), InterpolationMode(self.filter), antialias=True)
        return batch if self.crop is None else _centred(batch, *self.crop)

    def normalise(self, view: Tensor) -> Tensor:
        """uint8 ``[B, 3, h, w]`` -> float32, normalised: ``(x - 255 mean) / (255 std)``.

        Always laid out channel by channel: a convolution of another layout rounds otherwise, and a resized single frame has one.
        """
        view = view.contiguous()
        shift, scale = (255 * view.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std))
        return (view.to(torch.float32) - shift) / scale

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_processor(cls, processor: Any, source: str) -> Preparation:
        """What an image or video processor of transformers does, as its file says.

        Raises:
            UserError: it does something else besides, such as padding; names ``source``.
        """
        own = processor.to_dict()
        if own.get("do_pad") or (own.get("do_rescale", True) and abs(own.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6):
            raise UserError(f"the processor of {source} pads, or scales other than by 1/255: it cannot be batched here")
        size = _entries(own.get("size")) if own.get("do_resize", True) else None
        crop = _entries(own.get("crop_size")) if own.get("do_center_crop") else None
        if crop is not None and len(crop) != 2:
            raise UserError(f"the processor of {source} has a crop_size without height and width")
        plain = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        mean, std = (own["image_mean"], own["image_std"]) if own.get("do_normalize", True) else plain
        return cls(
            size,
            (crop[0], crop[1]) if crop else None,
            tuple(float(v) for v in mean),
            tuple(float(v) for v in std),
            FILTERS.get(int(own.get("resample", 2)), "bilinear"),
        )


def _centred(batch: Tensor, height: int, width: int) -> Tensor:
    """The middle of each picture, odd remainders below and right; smaller ones on black."""
    tall, wide = max(0, height - batch.shape[-2]), max(0, width - batch.shape[-1])
    if tall or wide:
        batch = pad(batch, (wide // 2, (wide + 1) // 2, tall // 2, (tall + 1) // 2))
    top, left = (batch.shape[-2] - height) // 2, (batch.shape[-1] - width) // 2
    return batch[..., top : top + height, left : left + width]


def _entries(size: Any) -> tuple[int, ...] | None:
    """``{"height": h, "width": w}`` or ``{"shortest_edge": s}`` of a processor."""
    if size is None:
        return None
    if size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    if size.get("shortest_edge") and not size.get("longest_edge"):
        return (int(size["shortest_edge"]),)
    raise UserError(f"a processor that resizes to {dict(size)} is not supported: it gives inputs of no fixed size")
