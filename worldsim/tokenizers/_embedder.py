"""Frames -> what k-means sees: pooled features of a frozen backbone, rounded to float16.

Columns, caches and a live camera all hold these float16 numbers, and codes are assigned from them alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from worldsim.core.config import fingerprint
from worldsim.core.errors import UserError, again
from worldsim.encoders import _vision
from worldsim.encoders._codes import Codes
from worldsim.encoders._vision import FROM_TOKENIZER, VisionEncoder

ENCODER = "encoder"
"""Folder inside a checkpoint for one of this project's tokenizers that serves as the backbone."""


@dataclass(frozen=True)
class Embedder:
    """A backbone and what is taken of it.

    Attributes:
        pooling: see :meth:`~worldsim.encoders._vision.VisionEncoder.pool`. normalise: to unit length.
    """

    encoder: VisionEncoder
    pooling: str = "auto"
    normalise: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows and columns of positions, and the width d of each."""
        return self.encoder.shape(self.pooling)

    def view(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 ``[B, H, W, 3]`` -> uint8 ``[B, 3, h, w]`` that the backbone looks at."""
        return self.encoder.view(frames)

    @torch.no_grad()
    def of_view(self, view: Tensor) -> Tensor:
        """What :meth:`view` gave -> float16 ``[B, P, d]`` on the backbone's device.

        Raises:
            UserError: a number does not fit float16.
        """
        rows = self.encoder.pool(self.encoder.features(view), self.pooling)
        rows = (normalize(rows, dim=-1) if self.normalise else rows).to(torch.float16)
        if not torch.isfinite(rows).all():
            raise UserError(
                f"an embedding of {self.encoder.source} is not finite in float16: scale it to unit length",
                again(normalise="true"),
            )
        return rows

    def __call__(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 ``[B, H, W, 3]`` -> float16 ``[B, P, d]``."""
        return self.of_view(self.view(frames))

    def params(self) -> dict[str, Any]:
        """What the numbers depend on beside the frames, as JSON-able values; no path among them."""
        rows, columns, width = self.shape
        return {
            "encoder": self.encoder.name,
            "revision": self.encoder.revision,
            "preparation": self.encoder.preparation.to_json(),
            "pooling": self.pooling,
            "normalise": self.normalise,
            "grid": [rows, columns],
            "dim": width,
            "dtype": "float16",
        }

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.params())

    def card(self) -> dict[str, Any]:
        """What :func:`load` needs."""
        return {"model": self.encoder.source, **self.params()}


def load(card: dict[str, Any], folder: Path, device: str | torch.device) -> Embedder:
    """The embedder that a card tells of; ``folder`` is the checkpoint's, for a tokenizer that lies in it.

    Raises:
        UserError: the backbone is not there, or has other weights now.
    """
    text = str(card["model"])
    if text.startswith(FROM_TOKENIZER):
        from worldsim import tokenizers

        module = tokenizers.load(folder / ENCODER, str(device))
        source = text.removeprefix(FROM_TOKENIZER)
        return Embedder(Codes(module, source, card["revision"]), card["pooling"], card["normalise"])
    return Embedder(_vision.load(text, device, card["revision"]), card["pooling"], card["normalise"])
