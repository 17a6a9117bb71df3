"""A context frame in full, and every other frame as the little that differs from it: few tokens per predicted frame.

# source: RLVR-World, arXiv:2505.13934, appendix A.4, and iVideoGPT, arXiv:2405.15223; shapes and names of the released
# ``rt1`` compressive tokenizer
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from worldsim.core.config import config
from worldsim.core.registry import register
from worldsim.nn.quantize import FSQ, Centre
from worldsim.tokenizers._blocks import Condition, Decoder, Encoder, KeysValues, Shape
from worldsim.tokenizers._face import Parts, Tokenizer, check_net, check_size

CARD = {
    "title": "Context frame and dynamics tokens, with finite scalar quantisation",
    "source": "Wu et al. 2025, arXiv:2505.13934 (RLVR-World); Wu et al. 2024, arXiv:2405.15223 (iVideoGPT)",
    "size": "129.5 M parameters (518 MB) as released; as small as the recipe says",
    "license": "MIT (released weights)",
}


@config
class Spec:
    """The nets. The defaults are the released geometry: 256x320 pixels, 32x40 context and 8x10 dynamics tokens.

    Attributes:
        channels: per level, from full size down; each level but the last halves height and width.
        resnets: residual blocks per level of the encoders. groups: of group norms.
        latent: channels before quantisation. levels: of both FSQs, one per dimension.
        patch: cells of the latent map, each way, that one dynamics token stands for.
        below: conditioning enters at maps of at most this height. heads, dropout: of its attention.
        centre: batch moments are normalised before quantisation; small models need it, the released one has it not.
        delta: frames are coded and decoded as differences from the decoded context frame; small models learn faster so.
        late: decoders upsample late, which makes them several times cheaper.
    """

    channels: tuple[int, ...] = (128, 256, 256, 512)
    resnets: int = 2
    groups: int = 32
    latent: int = 64
    levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    patch: int = 4
    below: int = 32
    heads: int = 4
    dropout: float = 0.1
    centre: bool = False
    delta: bool = False
    late: bool = False

    def __post_init__(self) -> None:
        check_net(self.channels, self.resnets, self.groups, self.levels)
        bad = next((c for c in self.channels if c % self.heads), None)
        if bad is not None:
            raise ValueError(f"every entry of channels must be a multiple of heads = {self.heads}, but {bad} is not")
        if self.patch < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"patch must be at least 1 and dropout in [0, 1): {self.patch}, {self.dropout}")


@dataclass(frozen=True)
class Features:
    """What frames are decoded against, one row per rollout: each context once, however many rollouts look at it.

    Attributes:
        maps: keys and values of the decoder's attention, per place, ``[P, …]``. picture: the decoded contexts ``[P, 3, H, W]``.
        rows: the context of each rollout, int64 ``[B]``, on the CPU.
    """

    maps: list[KeysValues]
    picture: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def expand(self, n: int) -> Features:
        """Each row n times, one after the other: ``[B]`` -> ``[B n]``. Nothing is copied."""
        return replace(self, rows=self.rows.repeat_interleave(n))

    def __getitem__(self, rows: Tensor | list[int] | slice) -> Features:
        """Some rows, in any order, repeats allowed."""
        return replace(self, rows=self.rows[rows.cpu() if isinstance(rows, Tensor) else rows])


@dataclass(frozen=True)
class Seen:
    """What frames are encoded against: the feature maps of the contexts' encoder, and with ``delta`` the contexts as decoded,
    ``[P, 3, H, W]``."""

    maps: list[Tensor]
    picture: Tensor | None


@register("tokenizers")
class FSQCompressive(Tokenizer):
    """``fsq-compressive``: see :class:`~worldsim.tokenizers._face.Tokenizer` for the attributes."""

    Net = Spec

    def __init__(self, spec: Spec | None = None, height: int = 256, width: int = 320) -> None:
        spec = spec or Spec()
        super().__init__(spec, height, width)
        self.cells = check_size(height, width, len(spec.channels) - 1, spec.patch)
        self.grid = (self.cells[0] // spec.patch, self.cells[1] // spec.patch)
        plain = Shape(spec.channels, spec.resnets, spec.groups, spec.latent, attention=False)
        seeing = replace(plain, attention=True)
        condition = Condition(height, width, self.cells, spec.below, spec.heads, spec.dropout)
        width_d, dims = spec.latent * spec.patch**2, len(spec.levels)
        self.cond_encoder = Encoder(seeing, condition, pictures=2 if spec.delta else 1)
        self.encoder = Encoder(plain)
        self.quant_conv = nn.Conv2d(spec.latent, dims, 1)
        self.post_quant_conv = nn.Conv2d(dims, spec.latent, 1)
        self.quant_linear = nn.Linear(width_d, dims)
        self.post_quant_linear = nn.Linear(dims, width_d)
        if spec.centre:
            self.context_centre, self.centre = Centre(dims), Centre(dims)
        self.quantize = FSQ(spec.levels)
        self.cond_decoder = Decoder(seeing, spec.late, condition)
        self.decoder = Decoder(plain, spec.late)
        self.codes, self.frame_tokens = self.quantize.codes, self.grid[0] * self.grid[1]
        self.context_tokens = self.cells[0] * self.cells[1]

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """Random weights, 16x24 pixels, 4x6 context and 2x3 dynamics tokens of 75 codes."""
        net = Spec(channels=(8, 8, 16), resnets=1, groups=4, latent=8, levels=(3, 5, 5), patch=2, heads=2, centre=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(net, 16, 24).eval().requires_grad_(False)

    @torch.no_grad()
    def encode_context(self, frames: Tensor) -> Tensor:
        """uint8 ``[B, H, W, 3]`` -> context tokens, int64 ``[B, Lc]``, row by row."""
        return self._context(self._maps(frames))[1].flatten(1)

    @torch.no_grad()
    def encode(self, frames: Tensor, context: Tensor | None = None) -> Tensor:
        """Frames as seen from one context frame per row.

        Args:
            frames: uint8 ``[B, T, H, W, 3]``. context: uint8 ``[B, H, W, 3]``; None takes each row's first frame.

        Returns:
            dynamics tokens, int64 ``[B, T, L]``, row by row.
        """
        latent, maps = self.encoder.features(self._maps(frames[:, 0] if context is None else context))
        picture = self._opened(self._quantised_context(latent)[0]).picture if self.spec.delta else None
        seen = Seen(maps, picture)
        rows = torch.arange(len(frames)).repeat_interleave(frames.shape[1])
        index = self._dynamics(self._maps(frames).flatten(0, 1), seen, rows)[1]
        return index.unflatten(0, frames.shape[:2])

    @torch.no_grad()
    def open(self, context_tokens: Tensor) -> Features:
        """Decode contexts once: ``[B, Lc]`` -> what :meth:`pixels` decodes their frames against."""
        codes = self.quantize.decode(context_tokens.to(self.device)).unflatten(1, self.cells).movedim(-1, 1)
        return self._opened(codes)

    @torch.no_grad()
    def pixels(self, features: Features, tokens: Tensor) -> Tensor:
        """Dynamics tokens ``[B, T, L]`` -> float32 ``[B, T, 3, H, W]`` in 0 … 1."""
        codes = self.quantize.decode(tokens.to(self.device).flatten(0, 1))
        every = features.expand(tokens.shape[1])
        parts = [self._decoded(every[part], codes[part]).float().clamp(0, 1) for part in self._parts(len(codes))]
        return torch.cat(parts).unflatten(0, tokens.shape[:2])

    @torch.no_grad()
    def context_pixels(self, features: Features) -> Tensor:
        """The context frames as decoded, float32 ``[B, 3, H, W]`` in 0 … 1."""
        return features.picture[features.rows].float().clamp(0, 1)

    def forward(self, context: Tensor, targets: Tensor) -> tuple[Parts, Tensor]:
        """For training: differentiable, not clamped.

        Args:
            context: float ``[B, 3, H, W]`` in 0 … 1. targets: ``[B, T, 3, H, W]``.

        Returns:
            contexts and targets decoded beside the truth, and the dynamics tokens, ``[B T L]``.
        """
        batch, count = targets.shape[:2]
        truth = targets.flatten(0, 1)
        latent, seen = self.encoder.features(context)
        features = self._opened(self._quantised_context(latent)[0])
        rows = torch.arange(batch).repeat_interleave(count)
        codes, index = self._dynamics(truth, Seen(seen, features.picture), rows)
        parts: Parts = {"context": (features.picture, context, None)}
        parts["frame"] = (self._decoded(features.expand(count), codes), truth, context.repeat_interleave(count, 0))
        return parts, index.flatten()

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """uint8 ``[B, T, H, W, 3]`` -> the same shape, coded against the first frame of each clip."""
        clips = torch.from_numpy(np.ascontiguousarray(frames))
        features = self.open(self.encode_context(clips[:, 0]))
        return self._uint8(self.pixels(features, self.encode(clips, clips[:, 0])))

    def _context(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        return self._quantised_context(self.encoder(maps))

    def _quantised_context(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Latent map -> codes ``[B, D, h, w]`` and tokens ``[B, h, w]``."""
        z = self.quant_conv(latent).movedim(1, -1)
        codes, index = self.quantize(self.context_centre(z) if self.spec.centre else z)
        return codes.movedim(-1, 1), index

    def _dynamics(self, frames: Tensor, seen: Seen, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures beside their contexts, ``rows`` of them -> codes ``[N, L, D]`` and tokens ``[N, L]``."""
        if self.spec.delta and seen.picture is not None:
            frames = torch.cat([frames, frames - seen.picture.detach()[rows]], 1)
        latent, p = self.cond_encoder(frames, seen.maps, rows), self.spec.patch
        cells = latent.unflatten(-1, (-1, p)).unflatten(-3, (-1, p))  # [N, C, h/p, p, w/p, p]
        patches = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [N, L, p p C]
        z = self.quant_linear(patches)
        return self.quantize(self.centre(z) if self.spec.centre else z)

    def _opened(self, codes: Tensor) -> Features:
        """Context codes ``[B, D, h, w]`` -> features."""
        maps = self.post_quant_conv(codes.to(self.post_quant_conv.weight.dtype))
        picture, seen = self.decoder.features(maps)
        return Features(self.cond_decoder.prepare(seen), picture, torch.arange(len(codes)))

    def _decoded(self, features: Features, codes: Tensor) -> Tensor:
        """Codes ``[N, L, D]`` beside N rows of features -> pictures ``[N, 3, H, W]``."""
        p, (rows, columns) = self.spec.patch, self.grid
        patches = self.post_quant_linear(codes.to(self.post_quant_linear.weight.dtype))
        cells = patches.unflatten(-1, (p, p, -1)).unflatten(1, (rows, columns))  # [N, h/p, w/p, p, p, C]
        maps = cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        decoded = self.cond_decoder(maps, features.maps, features.rows)
        return decoded + features.picture.detach()[features.rows] if self.spec.delta else decoded
