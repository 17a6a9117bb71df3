"""Each frame by itself: a convolutional encoder, FSQ, and a decoder that upsamples late (cheap to decode).

# source: RLVR-World, arXiv:2505.13934, appendix A.4; shapes and names of its released ``rt1`` per-frame tokenizer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from worldsim.core.config import config
from worldsim.core.registry import register
from worldsim.nn.quantize import FSQ, Centre
from worldsim.tokenizers._blocks import Decoder, Encoder, Shape
from worldsim.tokenizers._face import Parts, Tokenizer, check_net, check_size

CARD = {
    "title": "Per-frame CNN with finite scalar quantisation",
    "source": "Wu et al. 2025, arXiv:2505.13934 (RLVR-World); thuml/RLVR-World",
    "size": "104.4 M parameters (418 MB) as released; as small as the recipe says",
    "license": "MIT (released weights)",
}


@config
class Spec:
    """The net. The defaults are the released geometry: 256x320 pixels -> 16x20 tokens of 4375 codes.

    Attributes:
        channels: per level, from full size down; each level but the last halves height and width.
        resnets: residual blocks per level. groups: of group norms.
        latent: channels before quantisation. levels: of the FSQ, one per dimension.
        centre: batch moments are normalised before quantisation; small models need it, the released one has it not.
        attention: self-attention in the middle of encoder and decoder.
    """

    channels: tuple[int, ...] = (128, 256, 256, 512, 768)
    resnets: int = 2
    groups: int = 32
    latent: int = 64
    levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    centre: bool = False
    attention: bool = True

    def __post_init__(self) -> None:
        check_net(self.channels, self.resnets, self.groups, self.levels)


@dataclass(frozen=True)
class Features:
    """Nothing is shared between the frames of a group: only how many rows there are."""

    count: int

    def __len__(self) -> int:
        return self.count

    def expand(self, n: int) -> Features:
        return Features(self.count * n)

    def __getitem__(self, rows: Tensor | list[int] | slice) -> Features:
        return Features(len(torch.arange(self.count)[rows]))


@register("tokenizers")
class FSQFrame(Tokenizer):
    """``fsq-frame``: see :class:`~worldsim.tokenizers._face.Tokenizer` for the attributes. Context tokens there are none."""

    Net = Spec

    def __init__(self, spec: Spec | None = None, height: int = 256, width: int = 320) -> None:
        spec = spec or Spec()
        super().__init__(spec, height, width)
        self.grid = check_size(height, width, len(spec.channels) - 1)
        shape = Shape(spec.channels, spec.resnets, spec.groups, spec.latent, spec.attention)
        self.encoder = Encoder(shape)
        self.quant_linear = nn.Conv2d(spec.latent, len(spec.levels), 1)
        if spec.centre:
            self.centre = Centre(len(spec.levels))
        self.quantize = FSQ(spec.levels)
        self.post_quant_linear = nn.Conv2d(len(spec.levels), spec.latent, 1)
        self.decoder = Decoder(shape, late=True)
        self.codes, self.frame_tokens, self.context_tokens = self.quantize.codes, self.grid[0] * self.grid[1], 0

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """Random weights, 16x24 pixels, 2x3 tokens of 75 codes."""
        spec = Spec(channels=(8, 8, 16, 16), resnets=1, groups=4, latent=8, levels=(3, 5, 5), centre=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(spec, 16, 24).eval().requires_grad_(False)

    @torch.no_grad()
    def encode_context(self, frames: Tensor) -> Tensor:
        """uint8 ``[B, H, W, 3]`` -> int64 ``[B, 0]``: a frame needs no context."""
        return torch.empty(len(self._maps(frames)), 0, dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def encode(self, frames: Tensor, context: Tensor | None = None) -> Tensor:
        """uint8 ``[B, T, H, W, 3]`` -> tokens, int64 ``[B, T, L]``, row by row. ``context`` is not looked at."""
        index = self._quantised(self._maps(frames).flatten(0, 1))[1]
        return index.flatten(1).unflatten(0, frames.shape[:2])

    def open(self, context_tokens: Tensor) -> Features:
        """``[B, 0]`` -> the (empty) features of B contexts."""
        return Features(len(context_tokens))

    @torch.no_grad()
    def pixels(self, features: Features, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T, L]`` -> float32 ``[B, T, 3, H, W]`` in 0 … 1."""
        codes = self.quantize.decode(tokens.to(self.device).flatten(0, 1))
        maps = codes.unflatten(1, self.grid).movedim(-1, 1)
        parts = [self._decoded(maps[part]).float().clamp(0, 1) for part in self._parts(len(maps))]
        return torch.cat(parts).unflatten(0, tokens.shape[:2])

    def forward(self, context: Tensor, targets: Tensor) -> tuple[Parts, Tensor]:
        """For training: differentiable, not clamped.

        Args:
            context: float ``[B, 3, H, W]`` in 0 … 1, one more frame. targets: ``[B, T, 3, H, W]``.

        Returns:
            all frames decoded beside the truth, and the tokens, ``[N]``.
        """
        truth = torch.cat([context.unsqueeze(1), targets], 1).flatten(0, 1)
        codes, index = self._quantised(truth)
        still = context.repeat_interleave(1 + targets.shape[1], 0)
        return {"frame": (self._decoded(codes), truth, still)}, index.flatten()

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """uint8 ``[B, T, H, W, 3]`` -> the same shape after encoding and decoding."""
        tokens = self.encode(torch.from_numpy(np.ascontiguousarray(frames)))
        return self._uint8(self.pixels(Features(len(tokens)), tokens))

    def _quantised(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures -> codes ``[N, D, h, w]`` and tokens ``[N, h, w]``."""
        z = self.quant_linear(self.encoder(maps)).movedim(1, -1)
        codes, index = self.quantize(self.centre(z) if self.spec.centre else z)
        return codes.movedim(-1, 1), index

    def _decoded(self, codes: Tensor) -> Tensor:
        return self.decoder(self.post_quant_linear(codes.to(self.post_quant_linear.weight.dtype)))
