"""Launching here: one process, or torchrun with several."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from worldsim.core.errors import UserError
from worldsim.core.task import Task
from worldsim.launch import Job, launch, local


def task(out: Path, **config) -> Task:
    return Task("count-up", config, str(out), device="cpu")


def test_launch_runs_a_job_in_this_process(count_up: str, tmp_path: Path) -> None:
    result = launch(Job(count_up, {"steps": 4}, str(tmp_path / "out"), device="cpu"))
    assert (result["status"], result["metrics"]) == ("done", {"steps": 4, "world_size": 1})


def test_two_ranks_one_fails_and_the_same_command_finishes(count_up: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = task(out, steps=3, fail_at=1, fail_rank=1)
    with pytest.raises(UserError, match="the step is wrong: 'steps'") as caught:
        local.launch(job, nproc=2)
    assert caught.value.command == "worldsim count-up --set steps=2"
    saved = json.loads((out / "result.json").read_text())
    assert (saved["status"], saved["error"]) == ("failed", "the step is wrong: 'steps'")
    assert json.loads((out / "error.json").read_text())["rank"] == 1

    for rank in (0, 1):  # past the step that fails
        (out / "state" / f"{rank}.json").write_text('{"step": 2}')
    result = local.launch(job, nproc=2)
    assert (result["status"], result["metrics"]["world_size"]) == ("done", 2)
    assert not (out / "error.json").exists()  # the earlier attempt's error is not reported again
    assert local.launch(job, nproc=2)["notes"] == ["continued from step 2", "already done"]


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (1, RuntimeError, "rank 1: ZeroDivisionError: x"),
        (-9, UserError, "a process of count-up was killed \\(signal 9\\)"),
    ],
)
def test_how_ranks_end_decides_what_is_raised(tmp_path: Path, code: int, kind: type, message: str) -> None:
    """A defect stays a defect; after a kill, what the siblings complained about is not the cause."""
    record = {"sentence": "ZeroDivisionError: x", "command": None, "exit_code": 1, "user_error": False, "rank": 1}
    (tmp_path / "error.json").write_text(json.dumps(record))
    (tmp_path / "result.json").write_text('{"status": "interrupted", "metrics": {"a": 1}}')
    with pytest.raises(kind, match=message) as caught:
        local._outcome(task(tmp_path), tmp_path, code)
    saved = json.loads((tmp_path / "result.json").read_text())
    assert (saved["status"], saved["error"], saved["metrics"]) == ("failed", str(caught.value), {"a": 1})


def test_a_command_that_cannot_share_work_refuses_nproc() -> None:
    with pytest.raises(UserError, match="--nproc 2: convert runs in one process"):
        local.processes(Task("convert", {}, "x"), 2)
    assert local.processes(Task("convert", {}, "x"), None) == 1
    assert local.processes(Task("finetune-wan", {}, "x", device="cpu"), None) == 1


def test_a_signal_reaches_the_ranks(count_up: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ours = signal.getsignal(signal.SIGTERM)

    def terminate() -> None:
        while not all((out / "state" / f"{rank}.json").exists() for rank in (0, 1)):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        local.launch(task(out, steps=4000, pause=0.05), nproc=2)
    assert json.loads((out / "result.json").read_text())["status"] == "interrupted"
    assert 0 < json.loads((out / "state" / "0.json").read_text())["step"] < 4000
    assert signal.getsignal(signal.SIGTERM) == ours


def wait_for(path: Path, child: subprocess.Popen, seconds: float = 60.0) -> None:
    """Until ``path`` exists; fails when the child ends before that."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert child.poll() is None, "the child ended too early"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a child of its parent's end on Linux alone")
def test_ranks_end_with_a_launcher_that_is_killed(count_up: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = f"Task('count-up', {{'steps': 4000, 'pause': 0.05}}, {str(out)!r}, device='cpu')"
    code = f"from worldsim.core.task import Task; from worldsim.launch import local; local._several({job}, 2)"
    child = subprocess.Popen([sys.executable, "-c", code])
    ranks: list[str] = []
    try:
        for rank in (0, 1):
            wait_for(out / "state" / f"{rank}.json", child)
        ranks = [p.parent.name for p in Path("/proc").glob("[0-9]*/status") if _parent(p) == child.pid]
        assert len(ranks) >= 2
    finally:
        child.kill()
        child.wait()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in ranks):
        assert time.monotonic() < deadline, "a rank outlived its launcher"
        time.sleep(0.02)


def _parent(status: Path) -> int | None:
    try:
        return int(re.search(r"^PPid:\s+(\d+)", status.read_text(), re.M)[1])
    except OSError:  # it has ended meanwhile
        return None


def _alive(pid: str) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
