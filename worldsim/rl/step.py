"""The update: groups into one loss, a few groups at a time. Several updates may follow one round of sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldsim.core.errors import UserError, again
from worldsim.core.protocols import SupportsLogProb
from worldsim.rl.groups import Groups, Numbers, frame_of
from worldsim.rl.objectives import CLIP, DUAL_CLIP, advantages, group_std, objective, per_token
from worldsim.train import distributed
from worldsim.train.settings import Training


@dataclass(frozen=True)
class Weights:
    """What the objective weighs: see :func:`worldsim.rl.objectives.objective`."""

    kl: float = 1e-3
    clip: float = CLIP
    dual_clip: float = DUAL_CLIP


@dataclass(frozen=True)
class Shares:
    """How an iteration's prompts are shared out over updates, ranks and passes. The result does not depend on the last two.

    Attributes:
        prompts: per iteration, over all ranks. minibatch: per update, over all ranks; a divisor of ``prompts``.
        epochs: how often each prompt is learnt from. micro: groups per forward pass, at most.
    """

    prompts: int
    minibatch: int
    epochs: int = 1
    micro: int = 1
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.prompts % self.minibatch:
            raise UserError(
                f"prompts = {self.prompts} is not a multiple of minibatch = {self.minibatch}",
                again(minibatch=self.prompts),
            )
        if self.minibatch % self.world_size:
            raise UserError(
                f"whole groups cannot be shared out: minibatch = {self.minibatch} over {self.world_size} processes",
                again(nproc=max(d for d in range(1, self.world_size) if not self.minibatch % d)),
            )

    @property
    def rounds(self) -> int:
        """Mini-batches of one epoch."""
        return self.prompts // self.minibatch

    @property
    def updates(self) -> int:
        """Optimiser steps per iteration."""
        return self.rounds * self.epochs

    @property
    def own(self) -> int:
        """Groups of a mini-batch on one rank."""
        return self.minibatch // self.world_size

    @property
    def per_pass(self) -> int:
        """Groups per forward pass: the largest divisor of ``own`` up to ``micro``, so that all passes weigh the same."""
        return max(d for d in range(1, min(self.micro, self.own) + 1) if not self.own % d)

    @property
    def passes(self) -> int:
        return self.own // self.per_pass

    def numbers(self, rank: int) -> list[int]:
        """The places within an iteration of a rank's prompts, mini-batch by mini-batch."""
        starts = [round_ * self.minibatch + rank * self.own for round_ in range(self.rounds)]
        return [start + k for start in starts for k in range(self.own)]


class GroupLoss(nn.Module):
    """What ``train.loop`` trains: ``forward`` gives the loss of a few groups, and :attr:`seen` collects what to watch.

    Args:
        policy: the model; its ``net`` is trained. bf16: forward in bf16 under autocast, log-probabilities in fp32.
    """

    def __init__(self, policy: SupportsLogProb, weights: Weights, legal: bool = True, bf16: bool = False) -> None:
        super().__init__()
        self.net = policy.net
        self._policy, self.weights, self.legal, self.bf16 = (policy,), weights, legal, bf16
        self.frames = frame_of(policy.layout.response)
        self.seen: list[Numbers] = []

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.net.named_parameters())

    def groups(self, settings: Training) -> list[dict[str, Any]]:
        return [{"params": list(self.net.parameters()), "lr": settings.lr}]

    def blocks(self) -> list[nn.Module]:
        raise UserError("rlvr holds the whole model on every process: it cannot be sharded")

    def forward(
        self, prompt: Tensor, responses: Tensor, old: Tensor, reference: Tensor, advantage: Tensor, fresh: Tensor
    ) -> Tensor:
        """The loss of G groups of n.

        Args:
            prompt: ``[G, Lp]``. responses, old, reference: ``[G, n, Lr]``. advantage: ``[G, n, F]``.
            fresh: bool, whether the policy is still the one that drew the samples. Then the ratio is exactly 1: what
                sampling recorded differs from a recomputation by rounding alone, which must not look like learning.
        """
        with torch.autocast(prompt.device.type, torch.bfloat16, enabled=self.bf16):
            log_probs = self._policy[0].log_probs(prompt, responses, legal=self.legal)
        frames = self.frames.to(prompt.device)
        mask = frames >= 0
        before = log_probs.detach() if bool(fresh) else old
        found = objective(
            log_probs,
            before,
            reference,
            per_token(advantage, frames),
            mask,
            self.weights.kl,
            self.weights.clip,
            self.weights.dual_clip,
        )
        count = float(responses.shape[0] * responses.shape[1] * mask.sum())
        watched = {"policy_loss": found.policy, "clipped": found.clipped}
        if self.weights.kl:  # otherwise no reference was asked: ``reference`` is ``old``
            watched["kl"] = found.kl
        numbers = {name: (float(value.detach()) * count, count) for name, value in watched.items()}
        if bool(fresh):
            gap = ((log_probs.detach() - old) * mask).abs().sum()
            numbers["sampler_gap"] = (float(gap), count)
        self.seen.append(numbers)
        return found.loss


class Feed:
    """The forward passes of one iteration, in the order in which ``train.loop.Run.advance`` asks for them.

    Args:
        groups: of this rank, in the order of :meth:`Shares.numbers`. scale: of the advantages; see :func:`credit`.
        first: the iteration's first optimiser step.
    """

    waited = 0.0

    def __init__(self, groups: Groups, shares: Shares, scale: Tensor | None, first: int) -> None:
        self.groups, self.shares, self.first = groups, shares, first
        self.advantage = advantages(groups.values, scale)

    def take(self, step: int, micro: int) -> dict[str, Tensor]:
        update, size = step - self.first, self.shares.per_pass
        start = (update % self.shares.rounds) * self.shares.own + micro * size
        rows, g = slice(start, start + size), self.groups
        batch = {name: getattr(g, name)[rows] for name in ("prompt", "responses", "old", "reference")}
        return {**batch, "advantage": self.advantage[rows], "fresh": torch.tensor(update == 0)}


def shared_scale(values: Tensor) -> Tensor:
    """The mean deviation of the groups of all ranks, ``[1, 1, F]``, for ``uniform_std``; ``values`` ``[P, n, F]``."""
    spread = group_std(values)[:, 0].cpu().double()
    table = over_ranks(torch.cat([spread.sum(0), torch.tensor([float(len(spread))], dtype=torch.float64)]), values.device)
    return (table[:-1] / table[-1]).to(values)[None, None]


def over_ranks(values: Tensor, device: str | torch.device) -> Tensor:
    """The sum over ranks of a small tensor on the CPU, on every rank; it travels by way of ``device``."""
    if distributed.ranks().world_size == 1:
        return values
    moved = values.to(device)
    torch.distributed.all_reduce(moved)
    return moved.cpu()


def means(numbers: Numbers, device: str | torch.device = "cpu") -> dict[str, float]:
    """Means over all ranks of what each has summed; every rank has the same names."""
    names = sorted(numbers)
    table = over_ranks(torch.tensor([numbers[name] for name in names], dtype=torch.float64), device)
    return {name: float(total / count) for name, (total, count) in zip(names, table)}
