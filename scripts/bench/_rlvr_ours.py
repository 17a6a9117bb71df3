"""Our arms: the sampler, and one iteration of `worldsim rlvr` with its own collector, loss and feed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from _rlvr_work import Meter, Work
from torch import Tensor

from worldsim.rl.groups import Collector, Groups, Prompts
from worldsim.rl.step import Feed, GroupLoss, Shares, Weights
from worldsim.world_models._token_layout import Layout
from worldsim.world_models._token_net import TokenNet
from worldsim.world_models._token_sampler import Sampled, sample


@dataclass
class Policy:
    """What the collector asks of a world model (``core.protocols.SupportsLogProb``), without a checkpoint's card."""

    net: TokenNet
    layout: Layout

    def sample(self, prompt: Tensor, forced: Tensor, n: int, seeds: list[int], *, legal: bool = True) -> Sampled:
        return sample(self.net, prompt, forced, self.layout.response, n, seeds, legal=legal)

    def log_probs(self, prompt: Tensor, responses: Tensor, *, legal: bool = True) -> Tensor:
        return self.net.log_probs(prompt, responses, self.layout.response, legal=legal)


def draw_all(net: TokenNet, work: Work) -> Tensor:
    """Tokens ``[P, N, Lr]``."""
    segments = work.layout.response_for(work.frames)
    return sample(net, work.prompt, work.forced, segments, work.size, work.seeds).tokens


def iteration(
    net: TokenNet, frozen: TokenNet, work: Work, tokenizer: Any, judge: Any, prompts: Prompts
) -> tuple[Meter, Groups]:
    """Sample, decode, reward, reference, update: one optimiser step. ``net``'s weights change."""
    meter, policy = Meter(), Policy(net, work.layout)
    collector = Collector(policy, Policy(frozen, work.layout), tokenizer, judge, work.size, clock=meter)  # type: ignore[arg-type]
    groups = collector.collect(prompts, 0)
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-5, weight_decay=0.01)
    with meter.stage("update"):
        loss, shares = GroupLoss(policy, Weights()), Shares(len(prompts), len(prompts))
        feed = Feed(groups, shares, None, 0)
        for micro in range(shares.passes):
            (loss(**feed.take(0, micro)) / shares.passes).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    return meter, groups
