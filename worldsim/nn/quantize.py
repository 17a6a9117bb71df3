"""Finite scalar quantisation: each of a few numbers is rounded to a few levels; a code is the number of their combination.

# source: Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", arXiv:2309.15505, appendix A.1
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

EDGE = 1e-3
"""How far beyond the outermost levels numbers may reach before rounding, as a share of the range."""


class FSQ(nn.Module):
    """``levels`` (L_1 … L_D) make ``codes`` = L_1 · … · L_D codes; the first dimension counts fastest.

    Always in fp32, under autocast too: half a level lost in bf16 is another code. There is nothing to learn and nothing to
    save.

    Args:
        levels: at least 2 each. An even number of levels is shifted by half a step, so that 0 is one of them.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"every dimension needs at least 2 levels, but levels = {tuple(levels)}")
        self.levels = tuple(int(level) for level in levels)
        self.codes = math.prod(self.levels)
        count = torch.tensor(self.levels, dtype=torch.float64, device="cpu")  # known even where a net is built on "meta"
        offset = torch.where(count % 2 == 0, 0.5, 0.0)
        reach = (count - 1) * (1 + EDGE) / 2
        self._constant("count", count.long())
        self._constant("middle", (count // 2).long())
        self._constant("basis", torch.cumprod(torch.tensor([1, *self.levels[:-1]], device="cpu"), 0))
        self._constant("offset", offset.float())
        self._constant("reach", reach.float())
        self._constant("shift", torch.atanh(offset / reach).float())

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Round with straight-through gradients.

        Args:
            z: float ``[…, D]``, unbounded; about unit size uses all levels.

        Returns:
            codes in -1 … 1, ``[…, D]`` in the dtype of ``z``, and their indices, int64 ``[…]`` in 0 … codes - 1.
        """
        with torch.autocast(z.device.type, enabled=False):
            bounded = torch.tanh(z.float() + self.shift) * self.reach - self.offset
            steps = bounded.round()
            through = bounded + (steps - bounded).detach()
            return (through / self.middle).to(z.dtype), self._index(steps)

    def encode(self, z: Tensor) -> Tensor:
        """``[…, D]`` -> indices, int64 ``[…]``."""
        return self(z)[1]

    def decode(self, index: Tensor) -> Tensor:
        """Indices ``[…]`` in 0 … codes - 1 -> codes in -1 … 1, float32 ``[…, D]``. The inverse of :meth:`index_of`."""
        digits = (index.unsqueeze(-1) // self.basis) % self.count
        return (digits - self.middle).float() / self.middle

    def index_of(self, codes: Tensor) -> Tensor:
        """Codes in -1 … 1 ``[…, D]`` -> indices, int64 ``[…]``."""
        return self._index((codes.float() * self.middle).round())

    def _index(self, steps: Tensor) -> Tensor:
        """Whole steps from the middle, ``-middle … count - 1 - middle``, -> indices."""
        return ((steps.long() + self.middle) * self.basis).sum(-1)


class Centre(nn.Module):
    """Each dimension to mean 0 and variance 1 over everything else, nothing learned: keeps small models off one corner of
    the codes. The batch's own moments while training, their running average afterwards.

    Moments are fp32 buffers, which a trainer must save and average with the weights.
    """

    def __init__(self, dim: int, momentum: float = 0.05) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(self, z: Tensor) -> Tensor:
        """float ``[…, D]`` -> the same shape and dtype."""
        with torch.autocast(z.device.type, enabled=False):
            rows = z.float().flatten(0, -2)
            if not self.training:
                mean, variance = self.mean, self.variance
            else:
                variance, mean = torch.var_mean(rows, 0, unbiased=False)
                with torch.no_grad():
                    self.mean.lerp_(mean, self.momentum)
                    self.variance.lerp_(variance, self.momentum)
            return ((z.float() - mean) * torch.rsqrt(variance + 1e-5)).to(z.dtype)
