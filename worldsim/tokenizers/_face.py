"""What every FSQ tokenizer shares: its card, its folder, pixels in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from worldsim.core.config import build, to_values
from worldsim.core.errors import UserError
from worldsim.core.files import read_json
from worldsim.tokenizers import _released
from worldsim.tokenizers._blocks import Half
from worldsim.train import checkpoint

Parts = dict[str, tuple[Tensor, Tensor, Tensor | None]]
"""For training, by kind of picture: decoded, truth, and the context frames they were told from (None for these themselves),
each float ``[N, 3, H, W]``."""

PIXELS_AT_ONCE = 1 << 21
"""25 frames of 256x320: some GiB of activations in the widest released decoder."""


class Tokenizer(nn.Module):
    """Frames <-> tokens. Subclasses are registered; each has a config class ``Net`` and is built as ``cls(spec, h, w)``.

    Attributes:
        codes: K; every token lies in 0 … K - 1, context tokens too (they are never offset here).
        frame_tokens: L, per predicted frame. grid: its rows and columns, row by row.
        context_tokens: tokens of a context frame; 0 where frames are coded alone.
        height, width: pixels. levels: of the FSQ.
        about: what else the card says (camera, fps, the episodes it was trained on, …).
        imported: which weights of a released model fit, in words; empty for our own.
    """

    Net: ClassVar[type]
    codes: int
    frame_tokens: int
    context_tokens: int
    grid: tuple[int, int]

    def __init__(self, spec: Any, height: int, width: int) -> None:
        super().__init__()
        self.spec, self.height, self.width = spec, height, width
        self.about: dict[str, Any] = {}
        self.imported = ""

    @property
    def name(self) -> str:
        """The registered name."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(self.spec.levels)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def recompute(self, on: bool) -> None:
        """Whether training recomputes activations of the convolutional blocks instead of keeping them."""
        for half in self.modules():
            if isinstance(half, Half):
                half.checkpointing = on

    def card(self) -> dict[str, Any]:
        """All that :meth:`load` needs beside the weights, as JSON-able values."""
        sizes = {"codes": self.codes, "frame_tokens": self.frame_tokens, "context_tokens": self.context_tokens}
        net = {"net": to_values(self.spec), "height": self.height, "width": self.width}
        return {"tokenizer": self.name, **net, **sizes, "grid": list(self.grid), **self.about}

    def save(self, folder: Path) -> None:
        """``card.json`` and ``model.safetensors``, whole or not at all."""
        checkpoint.write_checkpoint(Path(folder), dict(self.state_dict()), self.card(), 0)

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Self:
        """From a folder that :meth:`save` or a training wrote; in eval mode and frozen.

        Raises:
            UserError: a missing, damaged or foreign file; a missing, unknown or misshapen weight is named.
        """
        card = read_json(Path(folder) / checkpoint.CARD)
        known = {"tokenizer", "net", "height", "width", "codes", "frame_tokens", "context_tokens", "grid"}
        if not isinstance(card, dict) or not known <= card.keys():
            lacks = sorted(known - (card.keys() if isinstance(card, dict) else set()))
            raise UserError(f"{Path(folder) / checkpoint.CARD} is no tokenizer's card: it lacks '{lacks[0]}'")
        with torch.device("meta"):
            module = cls(build(cls.Net, card["net"]), card["height"], card["width"])
        module.about = {key: value for key, value in card.items() if key not in known}
        path = Path(folder) / checkpoint.WEIGHTS
        _released.fill(module, checkpoint.read_weights(path), str(path))
        return module.to(device).eval().requires_grad_(False)

    def _maps(self, frames: Tensor) -> Tensor:
        """uint8 ``[…, H, W, 3]`` -> float ``[…, 3, H, W]`` in 0 … 1, on the module's device and in its dtype.

        Raises:
            UserError: frames of another size or dtype.
        """
        if frames.dtype != torch.uint8 or tuple(frames.shape[-3:]) != (self.height, self.width, 3):
            raise UserError(
                f"the tokenizer takes uint8 frames of {self.height}x{self.width}x3, but was given "
                f"{'x'.join(map(str, frames.shape[-3:]))} {str(frames.dtype).removeprefix('torch.')}"
            )
        dtype = next(self.parameters()).dtype
        return frames.to(self.device).movedim(-1, -3).to(dtype) / 255

    def _parts(self, count: int) -> list[slice]:
        """``count`` pictures in parts of at most ``PIXELS_AT_ONCE``, so that decoding a large group fits into memory."""
        each = max(1, PIXELS_AT_ONCE // (self.height * self.width))
        return [slice(at, at + each) for at in range(0, count, each)]

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """Encode and decode the truth, the first frame of each clip being the context: uint8 ``[B, T, H, W, 3]`` in and out."""
        raise NotImplementedError

    def _uint8(self, pixels: Tensor) -> np.ndarray:
        """float ``[…, 3, H, W]`` in 0 … 1 -> uint8 ``[…, H, W, 3]``."""
        return (pixels.float() * 255).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def check_size(height: int, width: int, halvings: int, patch: int = 1) -> tuple[int, int]:
    """Rows and columns of the latent map.

    Raises:
        ValueError: the size cannot be halved so often, or its cells not be grouped into patches.
    """
    step = patch << halvings
    if height % step or width % step or min(height, width) < step:
        raise ValueError(
            f"a frame of {height}x{width} does not divide into cells of {step}x{step} pixels; sizes are multiples"
        )
    return height >> halvings, width >> halvings


def check_net(channels: tuple[int, ...], resnets: int, groups: int, levels: tuple[int, ...]) -> None:
    """What both nets refuse, as ``ValueError`` that names the key."""
    bad = next((c for c in channels if c < 1 or c % groups), None)
    if not channels or bad is not None:
        raise ValueError(f"every entry of channels must be a multiple of groups = {groups}, but {bad} is not")
    if resnets < 1:
        raise ValueError(f"resnets must be at least 1, but is {resnets}")
    if not levels or min(levels) < 2:
        raise ValueError(f"every entry of levels must be at least 2, but levels = {levels}")
