"""The straightforward pipeline around transformers' ``LlamaForCausalLM``: every sample has its own copy of the prompt.

Nothing is slowed down: logits of the last position alone while sampling, a cache of exactly the needed length, no bookkeeping
of ``generate``. Noise and draw are ours, so both arms write the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from _rlvr_work import Meter, Work
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

from worldsim.rl.groups import Prompts, frame_of, unit
from worldsim.rl.objectives import advantages, objective, per_token, returns
from worldsim.world_models._token_sampler import draw, uniforms

MICRO = 8
"""Sequences per forward pass of the update, and twice as many of the reference: the released pipeline's."""
DECODED = 4
"""Sequences in one call of the tokenizer and of the reward: the released pipeline's."""


class PlainSampler:
    """Sampling with a cache inside a frame (``keep`` False: the whole prefix goes in again for every frame, as a server without
    a shared prefix does) or kept over all frames.

    Args:
        cache: ``static`` or ``dynamic``, transformers' classes.
    """

    def __init__(self, llama: LlamaForCausalLM, work: Work, keep: bool, cache: str = "static") -> None:
        self.llama, self.work, self.keep, self.kind = llama, work, keep, cache
        total = work.forced.shape[1]
        self.noise = uniforms(work.seeds, range(work.size), total).flatten(0, 1)
        self.prompt = work.prompt.repeat_interleave(work.size, 0)
        self.tokens = work.forced.repeat_interleave(work.size, 0)

    def frames(self) -> Iterator[int]:
        """Draw frame by frame; yields after each."""
        layout, length, cache, fed = self.work.layout, self.prompt.shape[1], None, 0
        ids = torch.cat([self.prompt, self.tokens], 1)
        for frame in range(self.work.frames):
            start = length + frame * layout.block
            stop = start + layout.frame_tokens
            if cache is None or not self.keep:
                cache, fed = self._cache(ids.shape[1] if self.keep else stop - 1), 0
            for i in range(start, stop):
                with torch.inference_mode():
                    out = self.llama(ids[:, fed:i], past_key_values=cache, use_cache=True, logits_to_keep=1)
                ids[:, i] = draw(out.logits[:, -1, : layout.codes].float(), self.noise[:, i - length])[0]
                fed = i
            yield frame
        self.tokens = ids[:, length:]

    def _cache(self, length: int) -> Any:
        if self.kind == "dynamic":
            return DynamicCache(config=self.llama.config)
        return StaticCache(config=self.llama.config, max_cache_len=length)


def iteration(
    llama: LlamaForCausalLM, work: Work, tokenizer: Any, judge: Any, prompts: Prompts, cache: str
) -> tuple[Meter, Tensor]:
    """Sample, decode, reward, old log-probabilities (as the released pipeline: the sampler's are not used), those of the
    reference, update: one optimiser step. ``llama``'s weights change. Also the tokens
    ``[P * N, Lr]``."""
    meter, size = Meter(), work.size
    with meter.stage("sample"):
        sampler = PlainSampler(llama, work, keep=False, cache=cache)
        list(sampler.frames())
    ids = torch.cat([sampler.prompt, sampler.tokens], 1)
    tokens = work.layout.frames_of(sampler.tokens)
    with meter.stage("decode"), torch.no_grad():
        pairs = zip(work.context.repeat_interleave(size, 0).split(DECODED), tokens.split(DECODED))
        driver = [tokenizer.pixels(tokenizer.open(context), frames).cpu() for context, frames in pairs]
    with meter.stage("reward"), torch.no_grad():
        values = _rewards(torch.cat(driver), tokens, judge, prompts, size)
    optimiser = torch.optim.AdamW(llama.parameters(), lr=5e-5, weight_decay=0.01)
    advantage = per_token(advantages(returns(values)), frame_of(work.layout.response)).flatten(0, 1)
    with meter.stage("old"), torch.no_grad():
        old = torch.cat([_log_probs(llama, part, work) for part in ids.split(2 * MICRO)])
    with meter.stage("reference"), torch.no_grad():
        known = torch.cat([_log_probs(llama, part, work) for part in ids.split(2 * MICRO)])
    with meter.stage("update"):
        mask = frame_of(work.layout.response) >= 0
        parts = list(zip(*(rows.split(MICRO) for rows in (ids, old, known, advantage))))
        for part, before, reference, credit in parts:
            now = _log_probs(llama, part, work)
            (objective(now, before, reference, credit, mask).loss / len(parts)).backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimiser.step()
    return meter, sampler.tokens


def _rewards(pixels: Tensor, tokens: Tensor, judge: Any, prompts: Prompts, size: int) -> Tensor:
    """A few samples at a time, each beside its own copy of the truth: ``[P, n, F]``."""
    truth, last = unit(prompts.truth).repeat_interleave(size, 0), unit(prompts.last).repeat_interleave(size, 0)
    given = prompts.given.repeat_interleave(size, 0)
    out = []
    for at in range(0, len(pixels), DECODED):
        some = slice(at, at + DECODED)
        parts = judge.parts(pixels[some, None], truth[some], tokens[some, None], last[some], given[some])
        out.append(judge.total(parts)[:, 0])
    return torch.cat(out).unflatten(0, (-1, size))


def _log_probs(llama: LlamaForCausalLM, ids: Tensor, work: Work) -> Tensor:
    """``[B, Lr]`` from the logits of the whole sequence over the whole vocabulary, illegal ids masked."""
    layout = work.layout
    logits = llama(ids, use_cache=False).logits[:, :-1].float()
    logits[..., layout.codes :] = -torch.inf
    targets = ids[:, 1:].clamp(max=layout.codes - 1)
    scores = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return scores[:, layout.prompt_length - 1 :] * (frame_of(layout.response) >= 0)
