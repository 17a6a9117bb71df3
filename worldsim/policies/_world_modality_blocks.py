"""A bidirectional transformer encoder whose result for a sample does not depend on the batch it is in, and which can say
where it looked.

On a CPU one matrix product over a whole batch splits its sums by the batch's size, so the last bits of an action would depend
on its neighbours. While evaluating, each sample gets a product of its own here; training uses the fused one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Rows(nn.Linear):
    """``nn.Linear`` on ``[B, L, D]``, bit-equal for a sample in any batch of two or more while evaluating on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training or input.device.type != "cpu":
            return super().forward(input)
        return torch.baddbmm(self.bias.expand(1, 1, -1), input, self.weight.t().expand(len(input), -1, -1))


class Looking:
    """Collects how much of each query's attention goes to some keys, averaged over heads and layers.

    Args:
        keys: positions. queries: positions.
    """

    def __init__(self, queries: slice, keys: slice) -> None:
        self.queries, self.keys = queries, keys
        self.seen: list[Tensor] = []

    def add(self, weights: Tensor) -> None:
        """``weights [B, heads, L, L]``, which sum to 1 over the last axis."""
        self.seen.append(weights[:, :, self.queries, self.keys].sum(-1).mean((1, 2)))

    def mean(self) -> Tensor:
        """``[B]`` in 0 … 1."""
        return torch.stack(self.seen).mean(0)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None, looking: Looking | None = None) -> Tensor:
    """Multi-head attention of ``[B, L, D]`` onto ``[B, M, D]``.

    Args:
        mask: bool ``[L, M]`` or ``[B, 1, L, M]``, True where a query may look.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if looking is None:
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1)
    looking.add(weights)
    return (weights @ v).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Self-attention and a GELU feed-forward layer, normalised before (``pre_norm``) or after each."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.heads, self.pre_norm = heads, pre_norm
        self.qkv, self.out = Rows(width, 3 * width), Rows(width, width)
        self.up, self.down = Rows(width, inner), Rows(inner, width)
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def attention(self, x: Tensor, mask: Tensor | None, looking: Looking | None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.drop(self.out(attend(q, k, v, self.heads, mask, looking)))

    def feed(self, x: Tensor) -> Tensor:
        return self.drop(self.down(self.drop(F.gelu(self.up(x)))))

    def forward(self, x: Tensor, mask: Tensor | None = None, looking: Looking | None = None) -> Tensor:
        if self.pre_norm:
            x = x + self.attention(self.norm_attention(x), mask, looking)
            return x + self.feed(self.norm_feed(x))
        x = self.norm_attention(x + self.attention(x, mask, looking))
        return self.norm_feed(x + self.feed(x))


class Encoder(nn.Module):
    """``layers`` blocks; with ``pre_norm`` a last normalisation."""

    def __init__(self, width: int, layers: int, heads: int, inner: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, inner, dropout, pre_norm) for _ in range(layers))
        self.norm = nn.LayerNorm(width) if pre_norm else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None, looking: Looking | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask, looking)
        return self.norm(x)


class Memory(nn.Module):
    """Gated cross attention to a memory: ``h + tanh(g) * CA(h, memory)`` with ``g = 0`` at the start, so that it begins unused.

    # source: Flamingo, arXiv 2204.14198, section 2.2; world-modality-vla's "Prophet" arm
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.keys_values, self.out = Rows(width, width), Rows(width, 2 * width), Rows(width, width)
        self.norm, self.norm_memory = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, states: Tensor, to: Tensor, memory: Tensor) -> Tensor:
        """
        Args:
            states: ``[B, H, D]``, what asks. to: ``[B, H, D]``, what the answer is added to. memory: ``[B, M, D]``.
        """
        keys, values = self.keys_values(self.norm_memory(memory)).chunk(2, -1)
        answer = self.out(attend(self.query(self.norm(states)), keys, values, self.heads, None))
        return to + torch.tanh(self.gate) * answer
