"""Run a task on this machine: in this process, or one process per GPU under PyTorch's elastic launcher (torchrun's own)."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldsim import worker
from worldsim.core import config as config_world
from worldsim.core import runs
from worldsim.core.errors import UserError, again
from worldsim.core.files import read_json, sweep, write_json
from worldsim.core.task import Task
from worldsim.launch.hardware import is_distributed
from worldsim.train import distributed


def launch(task: Task, nproc: int | None = None) -> dict[str, Any]:
    """Run ``task`` here and return its result. ``nproc`` None decides by the GPUs there are."""
    count = processes(task, nproc)
    return worker.execute(task) if count == 1 else _several(task, count)


def processes(task: Task, nproc: int | None) -> int:
    """How many processes the task gets: what was asked, else one per GPU for a command that can share work."""
    if nproc is not None:
        if nproc > 1 and not is_distributed(task.command):
            raise UserError(f"--nproc {nproc}: {task.command} runs in one process", again(nproc=1))
        return nproc
    if task.device not in ("auto", "cuda") or not is_distributed(task.command):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _several(task: Task, count: int) -> dict[str, Any]:
    """One worker per rank. The folder is claimed here, once: whether to start, to continue or to stop is no rank's choice."""
    module = worker.command_module(task.command)
    config = config_world.build(module.Config, task.config)
    device = worker.resolve_device(task.device)
    out = Path(task.out)
    done = runs.claim(out, task.command, config, task.seed)
    if done is not None:
        return worker.already_done(done)
    sweep(out)
    for stale in (distributed.ERROR, "result.json"):
        (out / stale).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="worldsim-") as folder:
        path = Path(folder) / "job.yaml"
        replace(task, device=device).write(path)
        try:
            killed = _elastic(count, ["-m", "worldsim.worker", str(path), "--claimed", "--parent", str(os.getpid())])
        except KeyboardInterrupt:
            _record(task, "interrupted")
            raise
    return _outcome(task, out, killed)


def _elastic(count: int, arguments: list[str]) -> int | None:
    """Run ``python ARGUMENTS`` once per rank, to the end.

    Returns:
        None when every rank succeeded, else the exit code of the first to fail (negative: its signal).

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the ranks were told and have ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the one error door speaks, not torch
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT",
    )
    with _handlers_kept(), _one_thread_each():
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except SignalException as error:
            raise KeyboardInterrupt from error
        except ChildFailedError as error:
            return error.get_first_failure()[1].exitcode
    return None


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """The launcher installs handlers of its own and leaves them; put ours back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        try:
            for number, handler in before.items():
                signal.signal(number, handler)
        except ValueError:  # not the main thread: the launcher installed nothing either
            pass


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Ranks would otherwise fight for the cores; torchrun does the same when it is not told otherwise."""
    given = "OMP_NUM_THREADS" in os.environ
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        if not given:
            del os.environ["OMP_NUM_THREADS"]


def _outcome(task: Task, out: Path, failed: int | None) -> dict[str, Any]:
    """The saved result, or the first rank's error as if it had been raised here."""
    if failed is None:
        return read_json(out / "result.json")
    record = distributed.read_error(out)
    if record is None or failed < 0:  # killed: what its siblings then complained about is not the cause
        how = f"signal {-failed}" if failed < 0 else f"exit code {failed}"
        error: Exception = UserError(
            f"a process of {task.command} was killed ({how}); the same command continues where it stopped", "free -g"
        )
    else:
        error = distributed.as_exception(record)
    _record(task, "failed", str(error))
    raise error


def _record(task: Task, status: str, error: str | None = None) -> None:
    """``result.json`` for rank 0 where it could not write one, or knew only that it was stopped."""
    path = Path(task.out) / "result.json"
    saved = read_json(path) if path.exists() else {}
    if saved.get("status") not in (None, "interrupted") and error is None:
        return
    base = {"command": task.command, "out": task.out, "metrics": {}, "notes": [], "seconds": 0.0, **saved}
    write_json(path, {**base, "status": status} | ({"error": error} if error else {}))
