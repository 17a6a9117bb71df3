"""``python -m worldsim.worker task.yaml``: the one entry that runs a command's body, here, under torchrun and on Modal."""

from __future__ import annotations

import argparse
import ctypes
import errno
import importlib
import os
import random
import re
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from worldsim.core import config as config_world
from worldsim.core import runs
from worldsim.core.console import say
from worldsim.core.errors import Interrupted, PartialResult, UserError
from worldsim.core.files import sweep
from worldsim.core.task import Task
from worldsim.core.types import Result
from worldsim.train import distributed

DEVICES = ("auto", "cpu", "cuda", "mps")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130


def command_module(command: str) -> ModuleType:
    """``worldsim.commands.<command>``, which has ``Config``, ``run`` and sometimes ``plan``."""
    return importlib.import_module(f"worldsim.commands.{command.replace('-', '_')}")


def execute(task: Task, claimed: bool = False) -> dict[str, Any]:
    """Run a task to its end in this process and return what ``result.json`` holds.

    The same task on the same folder continues, or returns the finished run's result with the note "already done"; a command
    that is a service (its module says ``REPEATS = True``) runs again.

    Args:
        task: what to do.
        claimed: whether the launcher has claimed the folder already, once for several ranks.

    Raises:
        UserError: a wrong value or bad data; recorded in ``result.json`` before it leaves, once the folder is ours.
    """
    module = command_module(task.command)
    config = config_world.build(module.Config, task.config)
    device = resolve_device(task.device, uses_torch=getattr(module, "USES_TORCH", True))
    me = distributed.ranks()
    out = Path(task.out)
    if not claimed:
        done = runs.claim(out, task.command, config, task.seed)
        if done is not None and not getattr(module, "REPEATS", False):
            return already_done(done)
        sweep(out)
    context = runs.RunContext(
        command=task.command, out=out, device=device, seed=task.seed, rank=me.rank, world_size=me.world_size
    )
    return _run(module, config, context)


def already_done(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "notes": [*result.get("notes", []), "already done"]}


def _run(module: ModuleType, config: Any, context: runs.RunContext) -> dict[str, Any]:
    """The command's body between a seed and a record of how it ended."""
    began = time.monotonic()
    seed_everything(context.seed)
    try:
        distributed.start(context.device)
        result: Result = module.run(config, context)
        distributed.barrier()  # done means that every rank is done
    except BaseException as error:
        full = disk_full(error, context.out)
        _record_failure(context, full or error, began, config)
        if full:
            raise full from error
        raise
    finally:
        distributed.stop()
    return _record(context, "done", result, began, config)


def _record_failure(context: runs.RunContext, error: BaseException, began: float, config: Any) -> None:
    """``result.json``, and ``error.json`` before siblings notice; a full disk must not hide the error being recorded."""
    partial = error.result if isinstance(error, PartialResult | Interrupted) else None
    with suppress(OSError):
        if context.world_size > 1 and isinstance(error, Exception):
            distributed.write_error(context.out, error)
        if isinstance(error, UserError):
            _record(context, "partial" if partial else "failed", partial or Result(), began, config, error=error.sentence)
        elif isinstance(error, Exception):
            _record(context, "failed", Result(), began, error=f"{type(error).__name__}: {error}")
        else:
            _record(context, "interrupted", partial or Result(), began)


def _record(
    context: runs.RunContext, status: str, result: Result, began: float, config: Any = None, **more: Any
) -> dict[str, Any]:
    """``provenance.json`` and ``result.json``, written by rank 0 alone."""
    for note in result.notes:
        context.note(note)
    if context.rank != 0:
        return {"status": status, "command": context.command, "out": str(context.out), "metrics": result.metrics}
    if config is not None:
        runs.write_provenance(context, config)
    more = {k: v for k, v in {"next": result.next, "summary": result.summary, **more}.items() if v}
    return runs.write_result(context, status, result.metrics, time.monotonic() - began, **more)


def disk_full(error: BaseException, out: Path) -> UserError | None:
    """The user's sentence for a full disk or quota, also when a C library hides the number in its text (HDF5)."""
    if not isinstance(error, OSError):
        return None
    hidden = re.search(r"errno = (\d+)", str(error))
    number = error.errno if error.errno is not None else int(hidden[1]) if hidden else None
    if number not in FULL:
        return None
    where = error.filename or out
    return UserError(
        f"no space left to write {where}; free some and type the same command again to continue", ["df", "-h", out]
    )


def resolve_device(wanted: str, *, uses_torch: bool = True) -> str:
    """``auto`` -> the best device there is; a device that is not there is refused.

    ``uses_torch=False`` (a command module says so with ``USES_TORCH = False``) answers ``cpu`` without importing torch.
    """
    if wanted not in DEVICES:
        raise UserError(f"--device {wanted} is not one of {', '.join(DEVICES)}", "worldsim doctor")
    if not uses_torch or wanted == "cpu":
        return "cpu"
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, available in there.items() if available)
    if not there[wanted]:
        raise UserError(f"--device {wanted}: torch finds no such device here", "worldsim doctor")
    return wanted


def seed_everything(seed: int) -> None:
    """Python's and numpy's generators, and torch's where the command has imported it. All ranks get the same seed."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _terminate(signum: int, frame: object) -> None:
    """A terminated worker ends as an interrupted one, so that it records its state."""
    raise KeyboardInterrupt


def die_with(parent: int) -> None:
    """End this process when ``parent``, which started it, ends in any way, ``kill -9`` included. Linux; elsewhere nothing."""
    if sys.platform != "linux":
        return
    # source: prctl(2), PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m worldsim.worker", description=__doc__)
    parser.add_argument("task", type=Path, help="a task as YAML")
    parser.add_argument("--claimed", action="store_true", help="the launcher has claimed the run folder for all ranks")
    parser.add_argument("--parent", type=int, help="the launcher's process, without which this one ends")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        die_with(options.parent)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        task = Task.read(options.task)
    except UserError as error:
        say(error.sentence)
        return error.exit_code
    try:
        execute(task, claimed=options.claimed)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        distributed.write_error(Path(task.out), error)
        if distributed.ranks().world_size == 1:  # a rank's error is said once, by its launcher
            say(error.sentence if isinstance(error, UserError) else f"unexpected {type(error).__name__}: {error}")
        if os.environ.get("WORLDSIM_DEBUG", "") not in ("", "0"):
            traceback.print_exc()
        return getattr(error, "exit_code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
