"""Two layers of fixed random filters and a random projection: a backbone that needs no download, for tests, demos and CI.

Random projections keep distances, so frames in which things stand elsewhere lie apart and k-means finds states of the scene; it
knows nothing of what the things are. Weights and activations are whole numbers (quarters after pooling) so small that float32
sums are exact in any order: the same bits whatever the batch, the number of threads or the machine.

# source: Achlioptas 2003, Database-friendly random projections (entries -1, 0, 1 with 1/6, 2/3, 1/6)
"""

from __future__ import annotations

import hashlib
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from worldsim.core.registry import register
from worldsim.encoders import seeded
from worldsim.encoders._preparation import Preparation
from worldsim.encoders._vision import Features, VisionEncoder

CARD = {
    "title": "Fixed random convolutions, no download",
    "source": "this project; random projections: Achlioptas 2003, doi:10.1016/S0022-0000(03)00025-4",
    "size": "0.8 M parameters, made from a seed",
    "license": "Apache-2.0",
    "kind": "vision",
}
SIDE, WIDTHS, SUMMARY = 64, (24, 48), 256
GREY, MOST, SCALE = 128, 255, 64
STEPS = (32, 16)
"""What a layer's sums are divided by before they are cut off to 0 … 255; powers of two."""


class Net(nn.Module):
    """float ``[B, 3, 64, 64]`` in 0 … 255 -> maps ``[B, 48, 8, 8]`` in 0 … 255 and their projection ``[B, 256]``."""

    def __init__(self, widths: tuple[int, int] = WIDTHS, summary: int = SUMMARY, side: int = SIDE) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, widths[0], 5, stride=2, padding=2, bias=False)
        self.second = nn.Conv2d(widths[0], widths[1], 3, stride=2, padding=1, bias=False)
        self.project = nn.Linear(widths[1] * (side // 8) ** 2, summary, bias=False)
        for layer in (self.first, self.second):
            layer.weight.data = torch.randint(-5, 6, layer.weight.shape).float()
        self.project.weight.data = torch.randint(6, self.project.weight.shape).eq(0).float()
        self.project.weight.data -= torch.randint(6, self.project.weight.shape).eq(0).float()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        first = (self.first(pixels.round() - GREY) / STEPS[0]).floor().clamp(0, MOST)
        second = (self.second(first) / STEPS[1]).floor().clamp(0, MOST)
        maps = avg_pool2d(second, 2)
        return maps, self.project(maps.flatten(1)) / SCALE


@register("encoders")
class RandomConv(VisionEncoder):
    """``random-conv``: the whole frame at 64 x 64; 8 x 8 patches of 48, and a summary of 256."""

    name = source = "random-conv"

    def __init__(self, net: Net | None = None, side: int = SIDE, seed: int = 0) -> None:
        super().__init__()
        self.module = (net or seeded(Net, seed)).eval().requires_grad_(False)
        self.preparation = Preparation((side, side), None, (0.0,) * 3, (1 / 255,) * 3, "bilinear")
        self.grid, self.dim = (side // 8, side // 8), self.module.second.out_channels
        self.summary_dim = self.module.project.out_features
        self.revision = f"seed {seed}, {_digest(self.module)}"

    @classmethod
    def create(cls, revision: str | None = None) -> Self:
        """The one and only."""
        return cls()

    @classmethod
    def tiny(cls) -> Self:
        """Narrower: 2 x 2 patches of 8 from 16 x 16 px, a summary of 12."""
        return cls(seeded(lambda: Net((4, 8), 12, 16)), 16)

    @torch.no_grad()
    def features(self, view: Tensor) -> Features:
        maps, summary = self.module(self.preparation.normalise(view.to(self.device)))
        return Features(maps.flatten(2).movedim(1, 2), summary)


def _digest(net: nn.Module) -> str:
    """12 hex digits of the weights: a machine that draws others from the seed is noticed."""
    digest = hashlib.sha256()
    for _, weight in sorted(net.state_dict().items()):
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()[:12]
