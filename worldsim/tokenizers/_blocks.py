"""The convolutional halves of a tokenizer, of diffusers' own blocks, so that released weights fit name by name.

Both halves can hand out their feature maps, and both can be conditioned on those of another one (``CrossAttention`` at
small scales): that is how a frame is coded relative to a context frame.
# source: AutoencoderKL's Encoder and Decoder (diffusers); thuml/RLVR-World, names and shapes of the released weights
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """What one half looks like.

    Attributes:
        channels: per level, from full size down; each level but the last halves the size.
        resnets: per level. groups: of group norms; divides every entry of ``channels``.
        latent: channels of the latent map. attention: whether the middle has self-attention.
    """

    channels: tuple[int, ...]
    resnets: int
    groups: int
    latent: int
    attention: bool


class Half(nn.Module):
    """What both halves share: blocks whose activations may be recomputed in the backward pass instead of kept."""

    checkpointing = False

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)


class Encoder(Half):
    """Pictures ``[B, 3, H, W]`` -> latent map ``[B, latent, h, w]``.

    Args:
        pictures: how many are stacked on the channels.
        condition: where conditioning enters (see :func:`conditioned`), or None for an unconditional one.
    """

    def __init__(self, shape: Shape, condition: Condition | None = None, pictures: int = 1) -> None:
        super().__init__()
        channels = shape.channels
        self.conv_in = nn.Conv2d(3 * pictures, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownEncoderBlock2D(
                before,
                after,
                num_layers=shape.resnets,
                resnet_eps=EPS,
                resnet_groups=shape.groups,
                add_downsample=level < len(channels) - 1,
                downsample_padding=0,
            )
            for level, (before, after) in enumerate(zip((channels[0], *channels), channels))
        )
        self.mid_block = _middle(shape)
        self.conv_norm_out = nn.GroupNorm(shape.groups, channels[-1], eps=EPS)
        self.conv_out = nn.Conv2d(channels[-1], shape.latent, 3, padding=1)
        self.places: tuple[int, ...] = ()
        if condition is not None:
            self.places = tuple(
                k for k in range(len(channels)) if _level_size(condition, channels, k)[0] <= condition.below
            )
            self.cross_att_blocks = nn.ModuleList(
                CrossAttention(channels[k], _level_size(condition, channels, k), condition, shape.groups)
                for k in self.places
            )

    def forward(self, x: Tensor, context: Sequence[Tensor] | None = None, rows: Tensor | None = None) -> Tensor:
        """
        Args:
            context: the feature maps of the context's encoder (:meth:`features`), for a conditional one.
            rows: which context each picture belongs to, int64 ``[B]``.
        """
        return self.features(x, context, rows)[0]

    def features(
        self, x: Tensor, context: Sequence[Tensor] | None = None, rows: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The latent map, and the map after each level at which a conditional one of this shape looks."""
        x = self.conv_in(x)
        maps = []
        for level, block in enumerate(self.down_blocks):
            x = self._run(block, x)
            maps.append(x)
            if level in self.places and context is not None:
                attend = self.cross_att_blocks[self.places.index(level)]
                x = attend(x, attend.keys_values(context[level]), rows)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x))), maps


class Decoder(Half):
    """Latent map ``[B, latent, h, w]`` -> pictures ``[B, 3, H, W]``, not clamped.

    Args:
        late: the first level keeps the size instead of the last, so that nothing but the last convolutions runs at full
            size: several times cheaper. It has one resnet per level less, as released.
    """

    def __init__(self, shape: Shape, late: bool, condition: Condition | None = None) -> None:
        super().__init__()
        channels = shape.channels[::-1]
        last = len(channels) - 1
        outs = (*channels[1:], channels[-1]) if late else channels
        self.conv_in = nn.Conv2d(shape.latent, channels[0], 3, padding=1)
        self.mid_block = _middle(shape)
        self.up_blocks = nn.ModuleList(
            UpDecoderBlock2D(
                before,
                after,
                num_layers=shape.resnets + (0 if late else 1),
                resnet_eps=EPS,
                resnet_groups=shape.groups,
                add_upsample=level > 0 if late else level < last,
            )
            for level, (before, after) in enumerate(zip((channels[0], *outs), outs))
        )
        self.conv_norm_out = nn.GroupNorm(shape.groups, outs[-1], eps=EPS)
        self.conv_out = nn.Conv2d(outs[-1], 3, 3, padding=1)
        self.places: tuple[int, ...] = ()
        if condition is not None:
            sizes = [_scaled(condition.grid, level if late else min(level + 1, last)) for level in range(len(outs))]
            self.places = (-1, *(k for k, size in enumerate(sizes) if size[0] <= condition.below))
            self.cross_att_blocks = nn.ModuleList(
                CrossAttention(
                    outs[k] if k >= 0 else channels[0], sizes[k] if k >= 0 else condition.grid, condition, shape.groups
                )
                for k in self.places
            )

    def forward(self, z: Tensor, context: Sequence[KeysValues] | None = None, rows: Tensor | None = None) -> Tensor:
        """
        Args:
            context: :meth:`prepare` of the context's feature maps, for a conditional one.
            rows: which context each latent map belongs to, int64 ``[B]``.
        """
        return self.features(z, context, rows)[0]

    def features(
        self, z: Tensor, context: Sequence[KeysValues] | None = None, rows: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The pictures, and the maps after the middle and after each level."""
        x = self._attend(self.mid_block(self.conv_in(z)), -1, context, rows)
        maps = [x]
        for level, block in enumerate(self.up_blocks):
            x = self._attend(self._run(block, x), level, context, rows)
            maps.append(x)
        return self.conv_out(F.silu(self.conv_norm_out(x))), maps

    def prepare(self, maps: Sequence[Tensor]) -> list[KeysValues]:
        """What conditioning looks at, from the feature maps of the context's decoder: once per context."""
        return [attend.keys_values(maps[k + 1]) for k, attend in zip(self.places, self.cross_att_blocks)]

    def _attend(self, x: Tensor, place: int, context: Sequence[KeysValues] | None, rows: Tensor | None) -> Tensor:
        if context is None or place not in self.places:
            return x
        at = self.places.index(place)
        return self.cross_att_blocks[at](x, context[at], rows)


KeysValues = tuple[Tensor, Tensor]
"""Keys and values of each context, ``[P, heads, cells, width]``."""


@dataclass(frozen=True)
class Condition:
    """Where and how a half looks at another one's feature maps.

    Attributes:
        height, width: of the pictures. grid: of the latent map.
        below: at every level whose map is at most so high (a decoder always does after its middle).
        heads, dropout: of the attention.
    """

    height: int
    width: int
    grid: tuple[int, int]
    below: int
    heads: int
    dropout: float


class CrossAttention(nn.Module):
    """``silu(x + attention(x to context))`` between two maps of one size, with learned positions.

    The parameters are those of ``nn.MultiheadAttention``, held by one; the attention itself runs over the maps of each
    context once, however many pictures look at it.
    """

    def __init__(self, channels: int, size: tuple[int, int], condition: Condition, groups: int) -> None:
        super().__init__()
        cells = size[0] * size[1]
        self.heads, self.dropout = condition.heads, condition.dropout
        self.att = nn.MultiheadAttention(channels, condition.heads, batch_first=True)
        self.kv_norm = nn.GroupNorm(groups, channels)
        self.q_norm = nn.GroupNorm(groups, channels)
        self.kv_pos_emb = nn.Parameter(torch.zeros(cells, channels))
        self.q_pos_emb = nn.Parameter(torch.zeros(cells, channels))

    def keys_values(self, context: Tensor) -> KeysValues:
        """Context maps ``[P, C, h, w]`` -> keys and values, each ``[P, heads, h w, C / heads]``."""
        cells = self.kv_norm(context).flatten(2).transpose(1, 2) + self.kv_pos_emb
        width = context.shape[1]
        both = F.linear(cells, self.att.in_proj_weight[width:], self.att.in_proj_bias[width:])
        keys, values = both.chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def forward(self, x: Tensor, context: KeysValues, rows: Tensor | None) -> Tensor:
        """
        Args:
            x: ``[B, C, h, w]``. rows: the context of each, int64 ``[B]``; None for one each.
        """
        width = x.shape[1]
        cells = self.q_norm(x).flatten(2).transpose(1, 2) + self.q_pos_emb
        queries = self._split(F.linear(cells, self.att.in_proj_weight[:width], self.att.in_proj_bias[:width]))
        seen = _shared_attention(queries, *context, rows, self.dropout if self.training else 0.0)
        out = self.att.out_proj(seen.transpose(1, 2).flatten(2))
        out = F.dropout(out, self.dropout, self.training).transpose(1, 2).reshape(x.shape)
        return F.silu(x + out)

    def _split(self, cells: Tensor) -> Tensor:
        """``[B, n, C]`` -> ``[B, heads, n, C / heads]``."""
        return cells.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _shared_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, dropout: float) -> Tensor:
    """Attention of ``q [B, heads, n, d]`` to the context of each row; adjacent pictures that share one become one longer
    query, where each context has as many, so that keys and values are not copied for each picture."""
    each = 1
    if rows is not None:
        contexts, counts = rows.unique_consecutive(return_counts=True)
        each = int(counts[0]) if bool((counts == counts[0]).all()) else 1
        wanted = contexts if each > 1 else rows
        if not torch.equal(wanted, torch.arange(len(k), device=wanted.device)):
            k, v = k[wanted], v[wanted]
    folded = q.unflatten(0, (len(k), each)).transpose(1, 2).flatten(2, 3)
    seen = F.scaled_dot_product_attention(folded, k, v, dropout_p=dropout)
    return seen.unflatten(2, (each, -1)).transpose(1, 2).flatten(0, 1)


def _middle(shape: Shape) -> UNetMidBlock2D:
    return UNetMidBlock2D(
        in_channels=shape.channels[-1],
        temb_channels=None,
        resnet_eps=EPS,
        resnet_groups=shape.groups,
        attention_head_dim=shape.channels[-1],
        add_attention=shape.attention,
    )


def _level_size(condition: Condition, channels: Sequence[int], level: int) -> tuple[int, int]:
    """Size of the map after ``level`` of an encoder."""
    halvings = min(level + 1, len(channels) - 1)
    return condition.height >> halvings, condition.width >> halvings


def _scaled(grid: tuple[int, int], doublings: int) -> tuple[int, int]:
    return grid[0] << doublings, grid[1] << doublings
