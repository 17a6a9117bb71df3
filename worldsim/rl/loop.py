"""The iterations of reinforcement: draw groups, learn from them, look at held-out scenes now and then.

An iteration is a function of (weights, seed, iteration number): which scenes, which context frames and which noise follow from
the last two. State is saved between iterations only, so a run that is killed anywhere ends in the same bytes as one that is
not (at equal world size). The optimiser, its state and the checkpoints are ``train.loop``'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from worldsim.core.console import progress
from worldsim.core.runs import RunContext
from worldsim.rl.groups import Collector, Groups, Prompts, added
from worldsim.rl.objectives import cell_scale
from worldsim.rl.step import Feed, GroupLoss, Shares, means, shared_scale
from worldsim.train.loop import Run, stoppable
from worldsim.train.settings import Training
from worldsim.train.tracking import METRICS, Tracker, read_rows

Save = Callable[[dict[str, Tensor], int], None]
HELD_OUT = "held_out_"
"""Prefix of the numbers of held-out scenes in ``metrics.jsonl``."""


@dataclass(frozen=True)
class Plan:
    """How long, and how often things are looked at.

    Attributes:
        iterations: in all. shares: of an iteration's prompts. uniform_std: one deviation for all groups of an iteration.
        every: iterations between looks at held-out scenes (the first one before any learning); 0 is never.
        save_every: iterations between saves; one is always made at the end. samples: of each held-out scene.
    """

    iterations: int
    shares: Shares
    uniform_std: bool = False
    every: int = 10
    save_every: int = 10
    samples: int = 4

    def training(self, settings: Training) -> Training:
        """``settings`` with its steps counted in optimiser steps of such a run."""
        shares = self.shares
        return replace(settings, steps=self.iterations * shares.updates, batch=shares.per_pass, accumulate=shares.passes)


@dataclass(frozen=True)
class Improved:
    """How a run ended.

    Attributes:
        iterations: done in all, of which this process did those from ``resumed_at`` on, in ``seconds``.
        best: the iteration after which held-out scenes were rewarded most, and that reward; None where none were looked at.
    """

    iterations: int
    resumed_at: int
    seconds: float
    best: tuple[int, float] | None


def improve(
    collector: Collector,
    loss: GroupLoss,
    fetch: Callable[[int], Prompts],
    held_out: list[Prompts],
    plan: Plan,
    settings: Training,
    context: RunContext,
    save: Save,
    save_best: Save,
    config: dict[str, Any],
) -> Improved:
    """Run to ``plan.iterations``, continuing from ``context.out/state``; the policy ends with its checkpoint's weights.

    Args:
        fetch: iteration -> this rank's prompts, CPU tensors, in the order of ``Shares.numbers``; called ahead of time from
            another thread.
        held_out: this rank's share of the scenes to look at; they never enter an update.
        save, save_best: write ``checkpoint/`` and the best checkpoint so far; called on rank 0.

    Raises:
        UserError: a reward, the loss or the gradient norm is not finite.
        KeyboardInterrupt: stopped by SIGTERM or SIGINT, after the iteration's state was saved.
    """
    run = Run(loss, plan.training(settings), context, save, rate_key="update.lr")
    outcome = _Improvement(run, collector, loss, held_out, plan, context, save_best).go(fetch, settings, config)
    run.settle()
    return outcome


class _Improvement:
    """One run, wherever it is in its iterations."""

    def __init__(
        self,
        run: Run,
        collector: Collector,
        loss: GroupLoss,
        held_out: list[Prompts],
        plan: Plan,
        context: RunContext,
        save_best: Save,
    ) -> None:
        self.run, self.collector, self.loss, self.plan = run, collector, loss, plan
        self.held_out, self.context, self.save_best = held_out, context, save_best
        self.done = run.step // plan.shares.updates
        rows = [row for row in read_rows(context.out / METRICS) if row.get("step", 0) <= self.done]
        scored = [(row["step"], row[f"{HELD_OUT}reward"]) for row in rows if f"{HELD_OUT}reward" in row]
        self.best: tuple[int, float] | None = max(scored, key=lambda pair: (pair[1], -pair[0])) if scored else None
        self.looked = {step for step, _ in scored}

    def go(self, fetch: Callable[[int], Prompts], settings: Training, config: dict[str, Any]) -> Improved:
        plan, first, began, saved = self.plan, self.done, time.monotonic(), self.done
        main = self.context.rank == 0
        tracker = Tracker(self.context, config, first, settings.wandb, settings.project) if main else None
        with (
            stoppable() as stop,
            ThreadPoolExecutor(1, thread_name_prefix="prompts") as pool,
            progress("rlvr", plan.iterations, done=first, unit="iterations") as bar,
        ):
            if plan.every and first == 0 and 0 not in self.looked:
                self._log(tracker, {"step": 0, **self._look()})
            coming = pool.submit(fetch, first) if first < plan.iterations else None
            while coming is not None:
                mark = time.monotonic()
                prompts = coming.result()
                coming = pool.submit(fetch, self.done + 1) if self.done + 1 < plan.iterations else None
                row = self._iterate(prompts, time.monotonic() - mark)
                if plan.every and (self.done % plan.every == 0 or self.done == plan.iterations):
                    row |= self._look()
                row["seconds"] = time.monotonic() - mark
                bar.advance(1, f"reward {row['reward']:.4f}")
                self._log(tracker, row)
                halt, last = self.run.any_rank(stop.is_set()), self.done == plan.iterations
                if halt or last or self.done % plan.save_every == 0:
                    self.run.save(final=last)
                    saved = self.done
                if halt and not last:
                    raise KeyboardInterrupt
        if saved == first == plan.iterations:  # killed between the last state and its checkpoint
            self.run.save(final=True)
        if tracker:
            tracker.close()
        return Improved(self.done, first, time.monotonic() - began, self.best)

    def _scale(self, values: Tensor) -> Tensor | None:
        """What advantages are divided by; None is each group's own deviation."""
        if self.collector.per_cell:
            return cell_scale(values, self.collector.policy.layout.predicted)
        return shared_scale(values) if self.plan.uniform_std else None

    def _iterate(self, prompts: Prompts, waited: float) -> dict[str, float]:
        """One iteration; returns its row of ``metrics.jsonl``."""
        plan, clock, loss = self.plan, self.collector.clock, self.loss
        shares, device = plan.shares, self.run.device
        clock.seconds, loss.seen = {"data": waited}, []
        self.loss.eval()
        groups = self.collector.collect(prompts.to(device), self.done + 1)
        self.loss.train()
        with clock.stage("update"):
            feed = Feed(groups, shares, self._scale(groups.values), self.run.step)
            norms = [self.run.advance(feed) for _ in range(shares.updates)]
        self.done += 1
        row = {"step": self.done, **means(added([groups.numbers, *loss.seen]), device)}
        row |= {"loss": sum(n["loss"] for n in norms) / len(norms), "grad_norm": max(n["grad_norm"] for n in norms)}
        row["lr"] = norms[-1]["lr"]
        return row | self._speeds(groups)

    def _speeds(self, groups: Groups) -> dict[str, float]:
        """Seconds per stage on this rank, and tokens per second while sampling, over all ranks."""
        seconds = self.collector.clock.seconds
        tokens = groups.responses.shape[0] * groups.responses.shape[1] * int((self.loss.frames >= 0).sum())
        out = {f"{name}_seconds": value for name, value in seconds.items()}
        out["sampled_tokens_per_second"] = tokens * self.context.world_size / max(seconds["sample"], 1e-9)
        return out

    def _look(self) -> dict[str, float]:
        """Numbers of the held-out scenes under the weights that a checkpoint would hold now; keeps the best."""
        collector = replace(self.collector, reference=None, size=self.plan.samples)
        with self.run.averaged():
            self.loss.eval()
            parts = [collector.collect(prompts.to(self.run.device), self.done).numbers for prompts in self.held_out]
            self.loss.train()
            found = means(added(parts), self.run.device)
            if self.best is None or found["reward"] > self.best[1]:
                self.best = (self.done, found["reward"])
                if self.context.rank == 0:
                    self.save_best({name: p.detach() for name, p in self.run.parameters.items()}, self.done)
        return {f"{HELD_OUT}{name}": value for name, value in found.items()}

    def _log(self, tracker: Tracker | None, row: dict[str, float]) -> None:
        if tracker:
            tracker.log(row)
