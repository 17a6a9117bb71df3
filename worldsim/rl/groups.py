"""From prompts to groups of judged futures: sample, decode, reward, credit. No gradient flows here.

Everything that the samples of a group share is computed once per group: keys and values of the prompt (the sampler's task),
the decoded context, features of the true frames. Equal tokens are decoded once. Pixels never leave the process that drew them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from worldsim.core.errors import UserError, again
from worldsim.core.protocols import SupportsLogProb
from worldsim.rl.memo import distinct, repeats
from worldsim.rl.objectives import returns

Numbers = dict[str, tuple[float, float]]
"""Name -> (sum, count)."""
DECODED = 64
"""Frames in one call of the tokenizer."""


class Codec(Protocol):
    """What a tokenizer must offer here; see ``worldsim.tokenizers``. ``grid``: rows and columns of a frame's tokens."""

    grid: tuple[int, int]

    def open(self, context: Tensor) -> Any:
        """What decoding needs of the context frames, from their tokens ``[B, Lc]``."""
        ...

    def pixels(self, features: Any, tokens: Tensor) -> Tensor:
        """float32 ``[B, T, 3, H, W]`` in 0..1 of tokens ``[B, T, L]``."""
        ...


class Judge(Protocol):
    """A reward, with its parts apart; see ``worldsim.rewards.Combined``."""

    def parts(
        self, prediction: Tensor, truth: Tensor, tokens: Tensor, last: Tensor, given: Tensor | None = None
    ) -> dict[str, Tensor]: ...

    def total(self, parts: dict[str, Tensor]) -> Tensor: ...

    def cells(
        self, parts: dict[str, Tensor], prediction: Tensor, truth: Tensor, last: Tensor, grid: tuple[int, int]
    ) -> Tensor: ...


@dataclass
class Prompts:
    """Scenes to imagine, P of them.

    Attributes:
        prompt: int64 ``[P, Lp]``. forced: int64 ``[P, Lr]``, given tokens of a response at their places.
        context: int64 ``[P, Lc]``, codes of the context frame. given: ``[P, L]``, codes of the last given frame.
        truth: uint8 ``[P, F, H, W, 3]``. last: the last given frame, uint8 ``[P, H, W, 3]``.
        seeds: one per scene; a sample's noise depends on (its scene's seed, its number) alone.
        where: how a person finds each scene: its episode and first given frame.
    """

    prompt: Tensor
    forced: Tensor
    context: Tensor
    given: Tensor
    truth: Tensor
    last: Tensor
    seeds: list[int]
    where: list[str]

    def __len__(self) -> int:
        return len(self.seeds)

    def part(self, rows: slice) -> Prompts:
        return Prompts(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: torch.device | str) -> Prompts:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)})


@dataclass
class Groups:
    """What an update learns from, P groups of n.

    Attributes:
        prompt: int64 ``[P, Lp]``. responses: int64 ``[P, n, Lr]``. old: log-probabilities recorded while sampling, fp32
            ``[P, n, Lr]``, 0 where forced. reference: those of the reference; equal to ``old`` where none was asked.
        values: what each frame's tokens are credited with, ``[P, n, F]`` (``objectives.returns``), before z-scores; or each
            token by itself, ``[P, n, F L]``.
        numbers: name -> (sum, count), for the records.
    """

    prompt: Tensor
    responses: Tensor
    old: Tensor
    reference: Tensor
    values: Tensor
    numbers: Numbers

    @staticmethod
    def join(parts: Sequence[Groups]) -> Groups:
        names = ("prompt", "responses", "old", "reference", "values")
        whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return Groups(**whole, numbers=added([part.numbers for part in parts]))


def added(parts: Sequence[Numbers]) -> Numbers:
    """Sums and counts of all parts, by name."""
    out: Numbers = {}
    for part in parts:
        for name, (total, count) in part.items():
            before = out.get(name, (0.0, 0.0))
            out[name] = (before[0] + total, before[1] + count)
    return out


class Clock:
    """Seconds per stage, summed; waits for the device so that a stage is billed for its own work."""

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.seconds = device, dict[str, float]()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


@dataclass
class Collector:
    """Draws groups and judges them.

    Attributes:
        policy: the model that learns. reference: its frozen twin; None where no KL is asked for.
        codec, judge: how futures are decoded and rewarded.
        size: n, samples per group. together: prompts in one call of the sampler. micro: groups in one pass of the reference.
        legal: mask ids that a position cannot have, in sampling and in both log-probabilities; without it the whole
            vocabulary takes part and an illegal id is decoded as the last code, as in the released pipeline.
        per_frame: credit each frame with itself and what follows, instead of with the mean of all. discount: weight of each
            further frame.
        per_cell: credit each token with its part of the picture alone, where the reward is a sum over pixels.
        bf16: the reference's forward pass runs in bf16 under autocast, as the policy's in the update does.
        recompute: ``old`` is what the policy's forward pass gives, in the update's precision, not what sampling recorded.
    """

    policy: SupportsLogProb
    reference: SupportsLogProb | None
    codec: Codec
    judge: Judge
    size: int
    together: int = 8
    micro: int = 1
    legal: bool = True
    per_frame: bool = False
    discount: float = 1.0
    per_cell: bool = False
    bf16: bool = False
    recompute: bool = False
    clock: Clock = field(default_factory=Clock)

    @torch.no_grad()
    def collect(self, prompts: Prompts, iteration: int) -> Groups:
        """Judged groups of all ``prompts``, which lie on the policy's device.

        Args:
            iteration: for the address of a reward that is not finite.

        Raises:
            UserError: a reward is NaN or infinite; names iteration, episode, start frame, sample and frame.
        """
        parts = []
        for at in range(0, len(prompts), self.together):
            some = prompts.part(slice(at, at + self.together))
            with self.clock.stage("sample"):
                drawn = self.policy.sample(some.prompt, some.forced, self.size, some.seeds, legal=self.legal)
                responses, old = drawn.tokens.clone(), drawn.log_probs.float().clone()  # out of inference mode
            judged = [
                self.judge_group(some.part(slice(p, p + 1)), responses[p : p + 1], iteration) for p in range(len(some))
            ]
            with self.clock.stage("reference"):
                old = self._log_probs(self.policy, some.prompt, responses) if self.recompute else old
                known = old if self.reference is None else self._log_probs(self.reference, some.prompt, responses)
            values = torch.cat([values for values, _ in judged])
            numbers = added([numbers for _, numbers in judged])
            chosen = frame_of(self.policy.layout.response) >= 0
            numbers["entropy"] = (-float(old.sum()), float(len(some) * self.size * chosen.sum()))
            parts.append(Groups(some.prompt, responses, old, known, values, numbers))
        return Groups.join(parts)

    def judge_group(self, prompt: Prompts, responses: Tensor, iteration: int) -> tuple[Tensor, Numbers]:
        """Credit ``[1, n, F]`` of one group, and its numbers."""
        tokens = self.policy.layout.frames_of(responses, clamp=not self.legal)
        with self.clock.stage("decode"):
            prediction, share = self.decode(prompt.context, tokens)
        with self.clock.stage("reward"):
            truth, last = unit(prompt.truth), unit(prompt.last)
            parts = self.judge.parts(prediction, truth, tokens, last, prompt.given)
            rewards = self.judge.total(parts)
            require_finite(rewards, parts, prompt.where[0], iteration)
            error = (prediction - truth[:, None]).square().mean()
        numbers = {f"reward_{name}": _mean(part) for name, part in parts.items()}
        numbers |= {"reward": _mean(rewards), "mse": _mean(error), "distinct": (share, 1.0)}
        numbers["repetition"] = _mean(repeats(tokens, prompt.given).float())
        numbers["reward_std"] = (float(rewards.mean(-1).std()) if self.size > 1 else 0.0, 1.0)
        if not self.per_cell:
            return returns(rewards, self.per_frame, self.discount), numbers
        own = self.judge.cells(parts, prediction, truth, last, self.codec.grid).transpose(-1, -2)
        return returns(own, self.per_frame, self.discount).transpose(-1, -2).flatten(-2), numbers

    def decode(self, context: Tensor, tokens: Tensor) -> tuple[Tensor, float]:
        """float32 ``[1, n, F, 3, H, W]`` of one group's tokens ``[1, n, F, L]``, and which share of the frames was decoded.

        Args:
            context: int64 ``[1, Lc]``; decoded once.
        """
        features, rows = self.codec.open(context), tokens.flatten(0, 2)
        first, which = distinct(rows)
        pictures = torch.cat([self.codec.pixels(features, rows[some][None])[0].float() for some in first.split(DECODED)])
        return pictures[which].unflatten(0, tokens.shape[:3]), len(first) / len(rows)

    def _log_probs(self, model: SupportsLogProb, prompt: Tensor, responses: Tensor) -> Tensor:
        """Log-probabilities under a model, a few groups at a time, in the precision of the update."""
        pairs = zip(prompt.split(self.micro), responses.split(self.micro))
        with torch.autocast(prompt.device.type, torch.bfloat16, enabled=self.bf16):
            return torch.cat([model.log_probs(p, r, legal=self.legal) for p, r in pairs])


def frame_of(segments: Sequence[Any]) -> Tensor:
    """Which predicted frame each position of a response belongs to, int64 ``[Lr]``; -1 where it is forced."""
    out, frame = [], 0
    for segment in segments:
        out += [frame if segment.generated else -1] * segment.length
        frame += segment.generated
    return torch.tensor(out)


def unit(frames: Tensor) -> Tensor:
    """uint8 ``[..., H, W, 3]`` -> float32 ``[..., 3, H, W]`` in 0..1."""
    return frames.movedim(-1, -3).float() / 255


def require_finite(rewards: Tensor, parts: dict[str, Tensor], where: str, iteration: int) -> None:
    """
    Raises:
        UserError: a reward of a group ``[1, n, F]`` is NaN or infinite.
    """
    bad = torch.nonzero(~torch.isfinite(rewards))
    if len(bad):
        _, sample, frame = bad[0].tolist()
        guilty = [name for name, part in parts.items() if not torch.isfinite(part[0, sample, frame])]
        raise UserError(
            f"the reward {' and '.join(guilty) or 'sum'} is {float(rewards[0, sample, frame])} in iteration {iteration}: "
            f"{where}, sample {sample}, predicted frame {frame + 1}",
            again(reward="mae", out="runs/rlvr/mae"),
        )


def _mean(values: Tensor) -> tuple[float, float]:
    return float(values.cpu().double().sum()), float(values.numel())
