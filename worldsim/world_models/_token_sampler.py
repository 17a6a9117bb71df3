"""Samples of responses of fixed length: a static cache, the prompt computed and kept once per group, given tokens in chunks.

What a server of language models cannot assume holds here: every response has the same length, the places of given tokens
(actions) are known, and the samples of a group share their prompt. So there is no end-of-sequence logic; the prompt's keys and
values are computed and stored once per group, and all of a group's queries attend to them in one call, merged with each
sample's own part by log-sum-exps; a chunk of given tokens goes in together with the generated token before it; the head is the
rows of the legal ids.

Noise is one uniform number per position, from Philox with the key (seed, sample number): a sample depends on its prompt, its
seed and its number, not on what it is batched with (but for rounding: a kernel may add in another order at another batch size,
and a uniform number that lies within rounding of a boundary then picks the neighbour).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldsim.nn.transformer import causal
from worldsim.world_models._token_layout import Segment
from worldsim.world_models._token_net import TokenNet, generated
from worldsim.world_models._token_step import Graphed, Step

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Sampled:
    """Samples of every prompt.

    Attributes:
        tokens: int64 ``[P, N, Lr]``, given tokens included.
        log_probs: fp32 ``[P, N, Lr]``, 0 where tokens are given: of the distribution at the sampling temperature, before
            any top-k; what ``TokenNet.log_probs`` with the same ``legal`` and ``temperature`` gives.
    """

    tokens: Tensor
    log_probs: Tensor


@torch.inference_mode()
def sample(
    net: TokenNet,
    prompt: Tensor,
    forced: Tensor,
    segments: Sequence[Segment],
    n: int,
    seeds: Sequence[int],
    *,
    first_sample: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    legal: bool = True,
    graphs: bool = False,
) -> Sampled:
    """Draw ``n`` responses for every prompt.

    Args:
        prompt: int ``[P, Lp]``.
        forced: int ``[P, Lr]``; read where a segment is not generated.
        segments: of the response.
        seeds: one per prompt.
        first_sample: number of the first sample; samples 0 … 15 are those of two calls of 8 with 0 and 8.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: keep the k likeliest ids. Log-probabilities are not normalised anew, so do not train on it.
        legal: draw a segment's legal ids alone; without it the whole vocabulary, as the released pipeline does.
        graphs: on a CUDA device, replay the single-token step as one graph.

    Returns:
        Tokens and log-probabilities, on the network's device.
    """
    groups, total = prompt.shape[0], sum(segment.length for segment in segments)
    if forced.shape != (groups, total) or len(seeds) != groups:
        raise ValueError(
            f"{groups} prompts need as many seeds and given tokens of {total}; got {len(seeds)}, {tuple(forced.shape)}"
        )
    spans = generated(segments, net.spec.vocab, legal)
    noise = uniforms(seeds, range(first_sample, first_sample + n), total).flatten(0, 1).to(net.device)
    tokens = forced.to(net.device)[:, None].expand(-1, n, -1).flatten(0, 1).clone()
    log_probs = torch.zeros(tokens.shape, dtype=torch.float32, device=net.device)
    step, last = prefill(net, prompt.to(net.device), n, spans[-1][1] - 1)
    feed: Callable[[Tensor, int], Tensor] = Graphed(step) if graphs and net.device.type == "cuda" else step
    fed = 0
    for start, stop, low, high in spans:
        head = step.head(low, high)
        for i in range(start, stop):
            hidden = feed(tokens[:, fed:i], fed) if i > fed else last
            logits = step.logits(hidden, head)
            tokens[:, i], log_probs[:, i] = draw(logits, noise[:, i], temperature, top_k)
            tokens[:, i] += low
            fed = i
    shape = (groups, n, total)
    return Sampled(tokens.view(shape), log_probs.view(shape))


def uniforms(seeds: Sequence[int], samples: Sequence[int], length: int) -> Tensor:
    """The noise of each (seed, sample number), float64 ``[P, N, length]`` in [0, 1): Philox, keyed by the two numbers."""
    keys = [[(seed & _MASK) | number << 64 for number in samples] for seed in seeds]
    rows = [[np.random.Generator(np.random.Philox(key=key)).random(length) for key in row] for row in keys]
    return torch.from_numpy(np.array(rows, np.float64).reshape(len(seeds), len(samples), length))


def draw(logits: Tensor, noise: Tensor, temperature: float = 1.0, top_k: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids and their log-probabilities by the inverse of the cumulative distribution.

    Args:
        logits: fp32 ``[B, V]``.
        noise: float64 ``[B]`` in [0, 1).
        temperature: 0 takes the likeliest id; its log-probability is that at temperature 1.

    Returns:
        int64 ``[B]`` and fp32 ``[B]``.
    """
    if not temperature:
        best = logits.log_softmax(-1).max(-1)
        return best.indices, best.values
    logits = logits if temperature == 1.0 else logits / temperature
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()
    total = weights.sum(-1)
    if top_k is not None and top_k < logits.shape[-1]:
        weights = weights.masked_fill(logits < logits.topk(top_k).values[:, -1:], 0.0)
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    wanted = (noise * cumulative[:, -1])[:, None]
    ids = torch.searchsorted(cumulative, wanted, right=True).clamp_(max=logits.shape[-1] - 1)
    return ids[:, 0], (weights.gather(-1, ids)[:, 0] / total).log_()


def prefill(net: TokenNet, prompt: Tensor, n: int, room: int) -> tuple[Step, Tensor]:
    """A step that knows the prompts ``[P, Lp]`` and has room for ``room`` tokens per sample, and the hidden states after the
    prompts' last token, ``[P * n, width]``."""
    table, x = net.table(0, prompt.shape[1]), net.model.embed_tokens(prompt)
    step = Step(net, prompt.shape, n, room)
    for number, block in enumerate(net.model.layers):
        q, k, v = block.heads_of(x, table)
        step.remember(number, k, v)
        if number + 1 == len(net.model.layers):
            q, x = q[:, -1:], x[:, -1:]
            x = block.finish(x, _to_all(q, k, v))
        else:
            x = block.finish(x, causal(q, k, v))
    return step, x[:, -1].repeat_interleave(n, 0)


def _to_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of ``[B, 1, heads, D]`` to all keys."""
    heads = (part.transpose(1, 2) for part in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2)
