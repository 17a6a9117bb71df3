"""A decoder-only transformer's parts (RMS norm, rotary positions, SwiGLU), and attention to a prefix that a group shares.

Tensors of heads are token-major, ``[B, L, heads, D]``: a group's samples are then one long row of queries for its prefix,
and separate rows for themselves, without a copy. Parameter names are those of transformers' Llama.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def rotary_table(positions: Tensor, width: int, base: float = 1e4) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, fp32 ``[L, width]`` each; halves rotate together, as in Llama.

    source: RoFormer, arXiv 2104.09864, section 3.2.2; half-split pairing of transformers' Llama.
    """
    rate = base ** (-torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width)
    angle = positions.float()[:, None] * rate
    angle = torch.cat([angle, angle], 1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Heads ``[B, L, heads, D]`` turned to their positions; ``table`` is :func:`rotary_table`'s for these L positions."""
    return _Rotate.apply(x, *(part[:, None].to(x.dtype) for part in table))


class _Rotate(torch.autograd.Function):
    """Three passes over ``x`` where plain operations take eight; backward turns the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return turned(grads[0], cos, -sin), None, None


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` ``[..., D]`` turned by angles with ``cos`` and ``sin``, broadcastable; see :func:`rotate`."""
    half = x.shape[-1] // 2
    out, sin = x * cos, sin[..., :half]
    out[..., :half].addcmul_(x[..., half:], sin, value=-1)
    out[..., half:].addcmul_(x[..., :half], sin)
    return out


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of ``[B, L, heads, D]`` onto themselves."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
    return out.transpose(1, 2)


class Attention(nn.Module):
    """Projections of multi-head attention, without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def project(self, x: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys (rotated) and values, ``[B, L, heads, D]`` each, of ``[B, L, width]``."""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)) for part in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(q, table), rotate(k, table), v


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``. source: arXiv 2002.05202, equation 6."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm layer, in two halves around the attention, which differs between training and sampling."""

    def __init__(self, width: int, inner: int, heads: int, eps: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.mlp = SwiGLU(width, inner)
        self.input_layernorm = nn.RMSNorm(width, eps)
        self.post_attention_layernorm = nn.RMSNorm(width, eps)

    def heads_of(self, x: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, L, heads, D]`` of the residual stream ``[B, L, width]``."""
        return self.self_attn.project(self.input_layernorm(x), table)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream after attention's result ``[B, L, heads, D]`` and the feed-forward half."""
        x = x + self.self_attn.o_proj(attended.flatten(-2))
        return x + self.mlp(self.post_attention_layernorm(x))

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        return self.finish(x, causal(*self.heads_of(x, table)))


def shared_prefix_attention(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    """Causal attention of samples onto themselves and onto a prefix that each group has in common.

    Args:
        q, k, v: ``[P * N, S, heads, D]``, sample by sample within a group.
        prefix_k, prefix_v: ``[P, Lp, heads, D]``.

    Returns:
        ``[P * N, S, heads, D]``; exactly attention over the prefix followed by the sample, gradients included. On a CPU the
        prefix's keys and values are never copied; elsewhere they are expanded for torch's own kernels.
    """
    if q.device.type == "cpu":
        return _SharedPrefix.apply(q, k, v, prefix_k, prefix_v)
    groups, length = prefix_k.shape[:2]
    samples, size = q.shape[0] // groups, q.shape[1]
    whole_k, whole_v = (
        torch.cat([prefix.repeat_interleave(samples, 0), own], 1) for prefix, own in ((prefix_k, k), (prefix_v, v))
    )
    mask = torch.ones(size, length + size, dtype=torch.bool, device=q.device).tril(length)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), whole_k.transpose(1, 2), whole_v.transpose(1, 2), mask)
    return out.transpose(1, 2)


def merge(one: Tensor, lse_one: Tensor, two: Tensor, lse_two: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts' attention results ``[..., D]`` with log-sum-exps ``[...]``, as attention over both parts."""
    share = torch.sigmoid(lse_two - lse_one).to(one.dtype)[..., None]
    return torch.lerp(one, two, share), torch.logaddexp(lse_one, lse_two)


class _SharedPrefix(torch.autograd.Function):
    """Two flash calls merged by their log-sum-exps. Backward hands both the merged result: a part's gradients need only the
    probabilities of the whole, ``exp(score - lse)``, and ``rowsum(out * grad)``.

    source: FlashAttention, arXiv 2205.14135, appendix B.4; merging as in Ring Attention, arXiv 2310.01889.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        groups = prefix_k.shape[0]
        far, far_lse = _flash(_fold(q, groups), prefix_k.transpose(1, 2), prefix_v.transpose(1, 2))
        near, near_lse = _flash(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        near, near_lse = near.transpose(1, 2), near_lse.transpose(1, 2)
        far, far_lse = far.transpose(1, 2).reshape(q.shape), far_lse.transpose(1, 2).reshape(near_lse.shape)
        out, lse = merge(far, far_lse, near, near_lse)
        ctx.save_for_backward(q, k, v, prefix_k, prefix_v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v, prefix_k, prefix_v, out, lse = ctx.saved_tensors
        groups, grad = prefix_k.shape[0], grads[0].contiguous()
        lse, near = lse.contiguous(), [x.transpose(1, 2) for x in (grad, q, k, v, out)]
        far_lse = lse.view(groups, -1, lse.shape[-1]).transpose(1, 2)
        q_near, k_near, v_near = _flash_backward(*near, lse.transpose(1, 2), 0.0, True)
        q_far, k_far, v_far = _flash_backward(
            _fold(grad, groups),
            _fold(q, groups),
            prefix_k.transpose(1, 2),
            prefix_v.transpose(1, 2),
            _fold(out, groups),
            far_lse,
            0.0,
            False,
        )
        q_grad = q_near.transpose(1, 2) + q_far.transpose(1, 2).reshape(q.shape)
        return q_grad, *(x.transpose(1, 2) for x in (k_near, v_near, k_far, v_far))


def _fold(x: Tensor, groups: int) -> Tensor:
    """``[P * N, S, heads, D]`` as ``[P, heads, N * S, D]``, a view: a group's samples as one row of queries."""
    return x.view(groups, -1, *x.shape[2:]).transpose(1, 2)


def token_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, rows: int = 2048) -> Tensor:
    """Log-probabilities of ``targets`` under ``softmax(hidden weight^T / temperature)``, without ever holding all logits.

    Args:
        hidden: ``[..., width]``.
        weight: ``[V, width]``, the rows of the legal ids alone.
        targets: int ``[...]`` in 0 … V - 1.
        rows: positions whose logits exist at one time.

    Returns:
        fp32 ``[...]``, differentiable in ``hidden`` and ``weight``.
    """
    flat = _TokenLogProbs.apply(hidden.flatten(0, -2), weight, targets.flatten(), temperature, rows)
    return flat.view(targets.shape)


class _TokenLogProbs(torch.autograd.Function):
    """Logits are made anew in backward, block by block."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, rows: int) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        ctx.plan, ctx.dtypes = (temperature, rows), (hidden.dtype, weight.dtype)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        picked, total = [], []
        for h, t in zip(hidden.split(rows), targets.split(rows)):
            logits = _scaled(F.linear(h, weight), temperature)
            total.append(logits.logsumexp(-1))
            picked.append(logits.gather(-1, t[:, None])[:, 0])
        lse = torch.cat(total)
        ctx.save_for_backward(hidden, weight, targets, lse)
        return torch.cat(picked) - lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, lse = ctx.saved_tensors
        temperature, rows = ctx.plan
        parts, weight_grad = [], torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for h, t, total, g in zip(*(x.split(rows) for x in (hidden, targets, lse, grads[0].float()))):
            p = _scaled(F.linear(h, weight), temperature).sub_(total[:, None]).exp_()
            p.mul_(-g[:, None]).scatter_add_(1, t[:, None], g[:, None])
            p = _scaled(p, temperature).to(h.dtype)
            parts.append(p @ weight)
            weight_grad += p.T @ h
        return torch.cat(parts).to(ctx.dtypes[0]), weight_grad.to(ctx.dtypes[1]), None, None, None


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """fp32, divided by the temperature in place."""
    return logits.float() if temperature == 1.0 else logits.float().div_(temperature)
