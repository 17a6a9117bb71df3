"""One step of the sampler: a few new tokens of every sample through all layers, with weights laid out once for it.

A step on a CPU is bound by memory: it reads every weight, the prompts' keys and values once per group, and each sample's own.
What is done about the rest: query, key and value are one multiplication, gate and up another, weights are packed for the number
of rows, queries and keys are rotated together, both attention parts are merged by one interpolation, residuals add in place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from worldsim.nn.packed_linear import PackedLinear
from worldsim.nn.transformer import merge, rotary_table, turned
from worldsim.world_models._token_net import EPS, ROTARY_BASE, TokenNet

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Step:
    """The network with its caches: per layer the prompts' keys and values, once per group, and room for each sample's own.

    Args:
        net: weights are read once, here; a later change of them is not seen.
        shape: ``(P, Lp)`` of the prompts.
        n: samples per prompt; rows are sample by sample within a group, ``B = P * n``.
        room: most tokens of a response that are ever fed.
    """

    def __init__(self, net: TokenNet, shape: tuple[int, int] | torch.Size, n: int, room: int) -> None:
        spec, weight = net.spec, net.lm_head.weight
        self.groups, self.length = int(shape[0]), int(shape[1])
        self.rows, self.net = self.groups * n, net
        self.heads, self.width = spec.heads, spec.width // spec.heads
        self.layers = [_Layer(block, self.rows) for block in net.model.layers]
        empty = {"dtype": weight.dtype, "device": weight.device}
        self.prefix: list[tuple[Tensor, Tensor]] = [()] * spec.layers  # type: ignore[list-item]
        self.own = [torch.zeros(2, self.rows, self.heads, room, self.width, **empty) for _ in range(spec.layers)]
        positions = torch.arange(self.length, self.length + room, device=weight.device)
        self.cos, self.sin = (
            part.to(weight.dtype)[:, None, None] for part in rotary_table(positions, self.width, ROTARY_BASE)
        )

    def remember(self, layer: int, k: Tensor, v: Tensor) -> None:
        """The prompts' keys and values of a layer, ``[P, Lp, heads, D]``."""
        self.prefix[layer] = (k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous())

    def __call__(self, ids: Tensor, at: int) -> Tensor:
        """Feed ids ``[B, m]`` whose first one is token ``at`` of the response; hidden states ``[B, width]`` after the last."""
        size, stop = ids.shape[1], at + ids.shape[1]
        mask = None
        if size > 1:
            mask = torch.full((size, stop), -torch.inf, dtype=self.cos.dtype, device=ids.device).triu_(at + 1)

        def attend(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            own = self.own[number]
            own[0, :, :, at:stop] = k
            own[1, :, :, at:stop] = v
            return self._attend(number, q, own[:, :, :, :stop], mask)

        return self._through(ids, (self.cos[at:stop], self.sin[at:stop]), attend)

    def static(self, ids: Tensor, at: Tensor) -> Tensor:
        """The same for one id ``[B, 1]`` at a place that is a tensor, int64 ``[1]``: all shapes are constant, so that it can be
        captured once and replayed for every place. It attends over the whole room, masked."""
        later = torch.arange(self.cos.shape[0], device=ids.device) > at
        mask = torch.zeros(1, len(later), dtype=self.cos.dtype, device=ids.device).masked_fill(later, -torch.inf)

        def attend(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            own = self.own[number]
            own[0].index_copy_(2, at, k)
            own[1].index_copy_(2, at, v)
            return _attend_plainly(self._folded(q), q.transpose(1, 2), self.prefix[number], own, mask)

        return self._through(ids, (self.cos.index_select(0, at), self.sin.index_select(0, at)), attend)

    def _through(self, ids: Tensor, table: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """All layers; ``attend`` takes queries ``[B, m, heads, D]`` and new keys and values ``[B, heads, m, D]``."""
        size = ids.shape[1]
        x = self.net.model.embed_tokens(ids).flatten(0, 1)
        for number, layer in enumerate(self.layers):
            qkv = layer.qkv(_norm(x, layer.norms[0])).view(self.rows, size, 3, self.heads, self.width)
            q, k = turned(qkv[:, :, :2], *table).unbind(2)
            attended = attend(number, q, k.transpose(1, 2), qkv[:, :, 2].transpose(1, 2))
            x += layer.out(attended.flatten(2).flatten(0, 1))
            gate, up = layer.gate_up(_norm(x, layer.norms[1])).chunk(2, -1)
            x += layer.down(F.silu(gate).mul_(up))
        return x.view(self.rows, size, -1)[:, -1]

    def head(self, low: int, high: int) -> PackedLinear:
        """The head for the ids ``low … high - 1``."""
        return PackedLinear(self.net.lm_head.weight[low:high], self.rows)

    def logits(self, hidden: Tensor, head: PackedLinear) -> Tensor:
        """fp32 logits ``[B, ids]`` of hidden states ``[B, width]``."""
        return head(self.net.model.norm(hidden)).float()

    def _folded(self, q: Tensor) -> Tensor:
        """Queries by group, ``[P, heads, N * m, D]``."""
        return q.reshape(self.groups, -1, self.heads, self.width).transpose(1, 2)

    def _attend(self, number: int, q: Tensor, own: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of ``[B, m, heads, D]`` to the group's prompt and to the sample's own tokens; the same shape."""
        folded, own_q = self._folded(q), q.transpose(1, 2)
        if q.device.type != "cpu":
            return _attend_plainly(folded, own_q, self.prefix[number], own, mask)
        far, far_lse = _flash(folded, *self.prefix[number])
        near, near_lse = _flash(own_q, own[0], own[1], attn_mask=mask)
        near, near_lse = near.transpose(1, 2), near_lse.transpose(1, 2)
        far, far_lse = far.transpose(1, 2).reshape(near.shape), far_lse.transpose(1, 2).reshape(near_lse.shape)
        return merge(near, near_lse, far, far_lse)[0]


def _attend_plainly(folded: Tensor, q: Tensor, prefix: tuple[Tensor, Tensor], own: Tensor, mask: Tensor | None) -> Tensor:
    """The same by one softmax over both parts' scores, of operations that every device and CUDA graphs have.

    Args:
        folded: queries by group ``[P, heads, N * m, D]``.
        q: the same by sample ``[B, heads, m, D]``.
        prefix: keys and values ``[P, heads, Lp, D]``.
        own: ``[2, B, heads, S, D]``.
        mask: added to the scores of the sample's own tokens, ``[m, S]``.
    """
    rows, heads, size, width = q.shape
    groups, length = prefix[0].shape[0], prefix[0].shape[2]
    far = (folded @ prefix[0].mT).unflatten(2, (-1, size)).transpose(1, 2).reshape(rows, heads, size, length)
    scores = torch.cat([far, q @ own[0].mT], -1).float() * width**-0.5
    if mask is not None:
        scores[..., length:] += mask
    chances = scores.softmax(-1).to(q.dtype)
    far = chances[..., :length].view(groups, -1, heads, size, length).transpose(1, 2).flatten(2, 3) @ prefix[1]
    far = far.unflatten(2, (-1, size)).transpose(1, 2).reshape(q.shape)
    return (far + chances[..., length:] @ own[1]).transpose(1, 2)


class _Layer:
    """A block's weights for ``rows`` rows, with query, key and value, and gate and up, side by side."""

    def __init__(self, block: torch.nn.Module, rows: int) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.qkv = PackedLinear(
            torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]), rows
        )
        self.out = PackedLinear(attention.o_proj.weight, rows)
        self.gate_up = PackedLinear(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), rows)
        self.down = PackedLinear(mlp.down_proj.weight, rows)
        self.norms = (block.input_layernorm.weight, block.post_attention_layernorm.weight)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPS)


class Graphed:
    """A :class:`Step` whose single-token step is one CUDA graph: hundreds of launches become one. Chunks go the plain way.

    Not yet run on a GPU by its authors; :meth:`Step.static`, which it captures, is tested against the plain step on a CPU.

    # source: the recipe of torch's CUDA graphs notes: warm up on a side stream, capture, replay on fixed buffers
    """

    def __init__(self, step: Step) -> None:
        self.step, device = step, step.cos.device
        self.ids = torch.zeros(step.rows, 1, dtype=torch.int64, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step.static(self.ids, self.at)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.hidden = step.static(self.ids, self.at)

    def __call__(self, ids: Tensor, at: int) -> Tensor:
        if ids.shape[1] > 1:
            return self.step(ids, at)
        self.ids.copy_(ids)
        self.at.fill_(at)
        self.graph.replay()
        return self.hidden
