"""``--remote``: check, ask, upload, submit, and (unless detached) wait and fetch. Knows no particular backend."""

from __future__ import annotations

import secrets as randomness
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldsim.core.console import say
from worldsim.core.errors import RemoteError, UserError, again
from worldsim.core.task import Task
from worldsim.launch import runs, upload
from worldsim.launch.backend import Backend, Call, Request, connect
from worldsim.launch.cost import Hardware, hardware
from worldsim.launch.hardware import need
from worldsim.launch.job import HOUR, Job
from worldsim.launch.plan import describe
from worldsim.launch.records import Record, find, run_id

ASK_GPUS, ASK_HOURS = 1, 8.0
"""More GPUs or more hours than these are asked about before anything is rented."""


def submit(job: Job, backend: Backend | None = None) -> dict[str, Any]:
    """Run ``job`` remotely. Returns its result, or with ``detach`` what is needed to follow it.

    Raises:
        UserError: a wrong value, a local path no container can see, or a failure of the run that is the user's to mend.
        RemoteError: no token, no connection, or trouble over there.
    """
    began = time.monotonic()
    plan = describe(job)  # a wrong value, unfit data or a local path ends here, before anything is asked or rented
    rented = hardware(need(job.command, job.recipe), job.launch)
    if plan["fits"] is False:
        say(f"about {plan['plan']['gpu_memory_gib']:.0f} GiB are needed on each GPU; {rented.gpu} may be too small")
    if not job.launch.yes:
        confirm(rented)
    backend = backend or connect()
    task, inputs = upload.remote_task(job.task)
    task = replace(task, out=f"runs/{run_id(task)}")
    run = Path(task.out).name
    _refuse_foreign_out(job.out, run)
    _refuse_twin(run, backend)
    for item in inputs:
        send(item, job.launch.volume, backend)
    timeout = job.launch.timeout or need(job.command, job.recipe).timeout
    request = Request(task.to_values(), f"{run}-{randomness.token_hex(4)}", timeout, job.launch.nproc)
    with backend.submit(request, rented, job.launch.volume, job.launch.secrets) as call:
        record = _remember(job, task, rented, timeout, call)
        say(f"run {run} is submitted; follow: worldsim runs logs {run} --follow; cancel: worldsim runs cancel {run}")
        result = None if job.launch.detach else _attend(call)
    if job.launch.detach:
        return _submitted(job, record, time.monotonic() - began)
    if result is None:
        say(f"run {run} goes on without you; fetch it later: worldsim runs pull {run}")
        raise KeyboardInterrupt
    return _finish(record, result, backend)


def confirm(rented: Hardware) -> None:
    """Ask before an expensive run; without a terminal, demand ``--yes``."""
    if rented.gpu_count <= ASK_GPUS and rented.timeout_hours <= ASK_HOURS:
        return
    what = f"{rented.gpu or 'a CPU container'} for up to {rented.timeout_hours:g} h costs at most ${rented.usd_at_most:.2f}"
    if not sys.stdin.isatty():
        raise UserError(f"{what}; say that you mean it with --yes", again(yes=True))
    print(f"{what}. Rent it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was rented")


def send(item: upload.Input, volume: str, backend: Backend) -> None:
    """Upload an input once: a marker, written last, says that all of it is there."""
    marker = f"data/{Path(item.remote).parts[1]}/complete-{item.path.resolve().name}"
    if backend.has(volume, marker):
        say(f"{item.path}: already on the volume '{volume}' as {item.remote}")
        return
    say(f"{item.path}: uploading {item.size / 2**20:.1f} MiB to the volume '{volume}' as {item.remote}")
    files: list[tuple[Path | bytes, str]] = [
        (path, f"{item.remote}/{relative}" if relative else item.remote)
        for path, relative in upload.files_of(item.path, item.keep)
    ]
    backend.send(volume, files)
    backend.send(volume, [(b"complete\n", marker)])


def _refuse_foreign_out(out: str, run: str) -> None:
    """The run's files will come to ``out``: it must be free, or hold this very run."""
    folder = Path(out)
    if find(run) is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{out} holds something else than this run; choose another folder", again(out=f"{out}-2"))


def _refuse_twin(run: str, backend: Backend) -> None:
    """Two containers must not write one folder."""
    record = find(run)
    if record is not None and runs.refresh(record, backend).status == "running":
        raise UserError(f"this very run is already going on as {run}", f"worldsim runs logs {run} --follow")


def _remember(job: Job, task: Task, rented: Hardware, timeout: int, call: Call) -> Record:
    record = Record(
        run=Path(task.out).name,
        call=call.id,
        command=job.command,
        recipe=job.recipe,
        out=job.out,
        volume=job.launch.volume,
        gpu=rented.gpu,
        timeout=timeout,
        usd_per_hour=rented.usd_per_hour,
        started=time.time(),
        status="running",
        url=call.url,
        task=task.to_values(),
    )
    record.save()
    return record


def _attend(call: Call) -> dict[str, Any] | None:
    """The run's answer, or None when the person watching leaves with Ctrl-C."""
    try:
        return call.wait()
    except KeyboardInterrupt:
        return None


def _submitted(job: Job, record: Record, seconds: float) -> dict[str, Any]:
    cost = record.timeout / HOUR * (record.usd_per_hour or 0)
    return {
        "status": "submitted",
        "command": job.command,
        "out": job.out,
        "metrics": {},
        "notes": [f"at most ${cost:.2f}; cancel: worldsim runs cancel {record.run}"],
        "seconds": round(seconds, 3),
        "run": record.run,
        "next": f"worldsim runs logs {record.run} --follow",
    }


def _finish(record: Record, result: dict[str, Any], backend: Backend) -> dict[str, Any]:
    """Record how it ended; fetch the files of a finished run, raise the error of a failed one."""
    replace(record, status=result["status"]).save()
    error = result.get("error")
    if isinstance(error, dict):
        say(f"what run {record.run} has written is on the volume: worldsim runs pull {record.run}")
        if not error["user"]:
            raise RemoteError(f"the remote run failed: {error['sentence']}", f"worldsim runs logs {record.run}")
        kind = RemoteError if error["exit_code"] == RemoteError.exit_code else UserError
        raise kind(error["sentence"], error["command"])
    out = runs.pull(record.run, backend=backend)
    return {**result, "out": out, "run": record.run}
