"""The one training loop: anything that gives a loss, on one process or many, exactly resumable.

A step is a function of (seed, step, rank): data order and noise follow from them (``worldsim.train.order``), and the
learning rate and EMA decay from the step. So a resume needs the weights, their average and the optimiser's moments,
nothing else, and a run that is killed anywhere ends in the same bytes as one that is not (at equal world size).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from worldsim.core.console import progress
from worldsim.core.errors import UserError, again
from worldsim.core.runs import RunContext
from worldsim.train import checkpoint, sharding
from worldsim.train.ema import Ema
from worldsim.train.order import noise_seed
from worldsim.train.settings import Training, ema_decay, lr_factor
from worldsim.train.tracking import Tracker

Batch = dict[str, Tensor]
PARTS = ("trained", "average", "optimizer")


class Trainable(Protocol):
    """A module whose ``forward(**batch)`` gives a scalar loss.

    A module with an attribute ``numbers`` (name -> scalar tensor, of the last forward pass) has them in ``metrics.jsonl``,
    those of rank 0.
    """

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters to train and save, by the name they are saved under."""
        ...

    def groups(self, settings: Training) -> list[dict[str, Any]]:
        """Optimiser groups over the same parameters: ``{"params": […], "lr": peak}``.

        A group may also have ``"alone": True``, whose gradient norm is bounded by itself, and ``"start": step`` before which
        its gradients are dropped: it is not stepped and its moments begin there.
        """
        ...

    def blocks(self) -> list[nn.Module]:
        """Its repeated parts, which FSDP2 brings together one at a time; asked for with ``train.sharding=fsdp2`` alone."""
        ...


class Feed(Protocol):
    """Where the batches of a step come from."""

    def take(self, step: int, micro: int) -> Batch:
        """The batch of forward pass ``micro`` of ``step``; asked for in order."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a training ended: the last loss, and seconds in the loop of which some were spent waiting for data."""

    steps: int
    loss: float
    seconds: float
    waited: float
    resumed_at: int


def fit(
    module: Any,
    fetch: Callable[[int, int], Batch],
    settings: Training,
    context: RunContext,
    save: Callable[[dict[str, Tensor], int], None],
    config: dict[str, Any] | None = None,
    measure: Callable[[int], dict[str, float]] | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:
    """Train ``module`` (a :class:`Trainable`) to ``settings.steps``, continuing from ``context.out/state``.

    Args:
        fetch: (step, forward pass) -> this rank's batch, CPU tensors; called ahead of time from another thread.
        save: writes ``checkpoint/`` from averaged tensors, by saved name; called on rank 0.
        config: recorded with the metrics.
        measure: step -> numbers of the module with the weights that its checkpoint will hold, a row of metrics of their own;
            called on rank 0 before every save that the settings ask for, so a resume never lacks one.
        watch: handed every row of metrics.

    Raises:
        UserError: the loss or the gradient norm is not finite; the last state and checkpoint before it are kept.
        KeyboardInterrupt: stopped by SIGTERM or SIGINT, after the state was saved.
    """
    run = Run(module, settings, context, save)
    began, waited, last = time.monotonic(), 0.0, float("nan")
    tracker = Tracker(context, config or {}, run.step, settings.wandb, settings.project) if context.rank == 0 else None
    first, saved = run.step, run.step
    tell = _teller(tracker, watch)
    with (
        stoppable() as stop,
        _Ahead(fetch, run.step, settings) as ahead,
        progress("train", settings.steps, done=first, unit="steps") as bar,
    ):
        mark, before = time.monotonic(), 0.0
        while run.step < settings.steps:
            numbers = run.advance(ahead)
            last, waited = numbers["loss"], ahead.waited
            bar.advance(1, f"loss {last:.4f}")
            if tracker and (run.step % settings.log_every == 0 or run.step == settings.steps):
                span = time.monotonic() - mark
                tell({"step": run.step, **numbers, **run.said(), "seconds": span, "data_seconds": waited - before})
                mark, before = time.monotonic(), waited
            halt = run.any_rank(stop.is_set())
            due = run.step % settings.checkpoint_every == 0 or run.step == settings.steps
            if tracker and measure and due:
                with run.averaged():
                    tell({"step": run.step, **measure(run.step)})
            if halt or due:
                run.save(final=run.step == settings.steps)
                saved = run.step
            if halt and run.step < settings.steps:
                raise KeyboardInterrupt
    if saved == first == settings.steps:  # killed between the last state and its checkpoint
        run.save(final=True)
    if tracker:
        tracker.close()
    return Outcome(run.step, last, time.monotonic() - began, waited, first)


def _teller(tracker: Tracker | None, watch: Callable[[dict[str, Any]], None] | None) -> Callable[[dict[str, Any]], None]:
    """Hands a row of metrics to both."""

    def tell(row: dict[str, Any]) -> None:
        if tracker:
            tracker.log(row)
        if watch:
            watch(row)

    return tell


class Run:
    """Module, optimiser and average of one run, wherever it is in its steps; what :func:`fit` and ``rl.loop`` drive.

    Args:
        rate_key: where the command's config holds the learning rate, for the hint of a loss that is not finite.
    """

    def __init__(
        self,
        module: Any,
        settings: Training,
        context: RunContext,
        save: Callable[..., None],
        rate_key: str = "train.lr",
    ) -> None:
        self.settings, self.context, self._save, self.rate_key = settings, context, save, rate_key
        AcceleratorState._reset_state(reset_partial_state=True)  # one process may run several commands, as tests do
        self.accelerator = Accelerator(cpu=context.device == "cpu")
        self.device = self.accelerator.device
        self.sharded = self._shard(module)
        if not self.sharded:
            module.to(self.device)
        self.module, self.parameters = module, module.trained()
        if context.device == "cuda":
            torch.set_float32_matmul_precision("high")
        groups = module.groups(settings)
        self.peaks = [group["lr"] for group in groups]
        foreach = True if self.sharded else None  # sharded tensors would be stepped one by one
        self.optimizer = torch.optim.AdamW(
            groups, betas=settings.betas, weight_decay=settings.weight_decay, foreach=foreach
        )
        self.average = Ema(self.parameters)
        self.step = 0
        self._resume()
        module.train()
        self.model = module if self.sharded else self.accelerator.prepare_model(module)

    def _shard(self, module: Any) -> bool:
        """Cut the module over the processes when the settings say so."""
        if self.settings.sharding == "none":
            return False
        if self.accelerator.num_processes == 1:
            self.context.note(
                f"train.sharding={self.settings.sharding} changes nothing in one process; --nproc N starts more"
            )
            return False
        sharding.shard(module, self.device.type)
        return True

    def advance(self, ahead: Feed) -> dict[str, float]:
        """One optimiser step. Returns loss (over all ranks), gradient norm and learning rate."""
        settings, total = self.settings, torch.zeros((), device=self.device)
        for group, peak in zip(self.optimizer.param_groups, self.peaks):
            group["lr"] = peak * lr_factor(self.step, settings)
        for micro in range(settings.accumulate):
            batch = {k: v.to(self.device, non_blocking=True) for k, v in ahead.take(self.step, micro).items()}
            torch.manual_seed(noise_seed(self.context.seed, self.step, micro, self.context.rank))
            together = micro + 1 == settings.accumulate
            sharding.sync_gradients(self.model, together)
            with nullcontext() if together else self.accelerator.no_sync(self.model):
                loss = self.model(**batch) / settings.accumulate
                self.accelerator.backward(loss)
            total += loss.detach()
        norm = self._clip()
        total = self.accelerator.reduce(total, "mean")
        for what, value in (("loss", total), ("gradient norm", norm)):  # before a step could write it into the weights
            if not torch.isfinite(value):
                raise UserError(
                    f"the {what} is not finite at step {self.step + 1}; take another folder and a lower rate",
                    again({self.rate_key: settings.lr / 10, "out": f"{self.context.out}-2"}),
                )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if settings.ema:
            self.average.update(self.parameters, ema_decay(self.step, settings))
        self.step += 1
        return {"loss": float(total), "grad_norm": float(norm), "lr": self.optimizer.param_groups[0]["lr"]}

    def _clip(self) -> Tensor:
        """Bound gradient norms; the largest one before. Gradients of groups that have not started are dropped."""
        alone = [group["params"] for group in self.optimizer.param_groups if group.get("alone")]
        for group in self.optimizer.param_groups:
            for parameter in group["params"] if self.step < group.get("start", 0) else []:
                parameter.grad = None
        apart = {id(p) for params in alone for p in params}
        shared = [p for p in self.parameters.values() if id(p) not in apart]
        bound = self.settings.clip or float("inf")
        norms = [sharding.whole(nn.utils.clip_grad_norm_(params, bound)) for params in [shared, *alone]]
        return torch.stack([norm.to(self.device) for norm in norms]).max() if alone else norms[0]

    def said(self) -> dict[str, float]:
        """What the module says of its last forward pass."""
        return {name: float(value) for name, value in getattr(self.module, "numbers", {}).items()}

    def any_rank(self, flag: bool) -> bool:
        """Whether any rank says so: all stop at the same step, or none."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum") > 0)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the module has the weights that a checkpoint would hold now."""
        if not self.settings.ema:
            yield
            return
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._become(self.average.shadow)
        try:
            yield
        finally:
            self._become(kept)

    def settle(self) -> None:
        """At the end: the module keeps the weights that its checkpoint holds."""
        if self.settings.ema:
            self._become(self.average.shadow)

    @torch.no_grad()
    def _become(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def save(self, final: bool) -> None:
        """``state/`` and ``checkpoint/``, whole, on rank 0; the others hand in their slices and wait."""
        parts = {
            "trained": sharding.gather({name: p.detach() for name, p in self.parameters.items()}),
            "average": sharding.gather(self.average.shadow),
            "optimizer": sharding.gather(self.optimizer.state_dict()),
        }
        if self.context.rank == 0:
            about = {"world_size": self.context.world_size, "final": final}
            checkpoint.write_state(self.context.out / "state", self.step, parts, about)
            self._save(parts["average" if self.settings.ema else "trained"], self.step)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def _resume(self) -> None:
        folder = checkpoint.latest_state(self.context.out / "state")
        if folder is None:
            return
        about, parts = checkpoint.read_state(folder, PARTS)
        for name, parameter in self.parameters.items():
            sharding.fill(parameter, parts["trained"][name])
        self.average.load(parts["average"])
        sharding.load_optimizer(self.optimizer, parts["optimizer"])
        self.step = about["step"]
        if about["world_size"] != self.context.world_size:
            self.context.note(
                f"resumed at {self.context.world_size} processes what {about['world_size']} began; "
                "the result is not bit-equal to an undisturbed run's"
            )


class _Ahead:
    """Prepares the next batches in a thread while this one is computed; counts the seconds that were waited."""

    def __init__(self, fetch: Callable[[int, int], Batch], step: int, settings: Training, depth: int = 2) -> None:
        self.fetch, self.settings, self.waited = fetch, settings, 0.0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next = self._passes(step)
        self._queue: list[tuple[tuple[int, int], Future[Batch]]] = []
        for _ in range(depth):
            self._push()

    def _passes(self, step: int) -> Iterator[tuple[int, int]]:
        for at in range(step, self.settings.steps):
            for micro in range(self.settings.accumulate):
                yield at, micro

    def _push(self) -> None:
        key = next(self._next, None)
        if key is not None:
            self._queue.append((key, self._pool.submit(self.fetch, *key)))

    def take(self, step: int, micro: int) -> Batch:
        key, future = self._queue.pop(0)
        if key != (step, micro):
            raise RuntimeError(f"batch {key} is next, {(step, micro)} was asked for")
        began = time.monotonic()
        batch = future.result()
        self.waited += time.monotonic() - began
        self._push()
        return batch

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """SIGTERM and SIGINT ask for a stop at the end of the step instead of tearing it; a second one is immediate."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(signum: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
