"""What runs inside a rented container, run here in a temporary folder: killed, continued, out of time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import painted
from tests.launch.test_local import wait_for
from worldsim.core import registry
from worldsim.core.config import load_recipe
from worldsim.core.runs import VOLATILE
from worldsim.launch.container import committing, run_job


def request(timeout: int = 600, submission: str = "s", command: str = "count-up", **config) -> dict:
    task = {"command": command, "config": config, "out": "runs/one", "device": "cpu"}
    return {"task": task, "submission": submission, "timeout": timeout, "nproc": 1}


def payload(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in VOLATILE)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def in_container(order: dict, root: Path) -> subprocess.Popen:
    code = "import json, sys, pathlib; from worldsim.launch.container import run_job\n"
    code += "print(json.dumps(run_job(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]))))"
    return subprocess.Popen([sys.executable, "-c", code, json.dumps(order), str(root)], stdout=subprocess.PIPE, text=True)


def test_two_steps_killed_and_continued_as_if_nothing_had_happened(count_up: str, tmp_path: Path) -> None:
    child = in_container(request(steps=60, pause=0.05), tmp_path / "vol")
    state = tmp_path / "vol" / "runs" / "one" / "state" / "0.json"
    wait_for(state, child)
    while json.loads(state.read_text())["step"] < 2:
        time.sleep(0.01)
    child.kill()
    child.communicate()
    assert not (tmp_path / "vol" / "runs" / "one" / "checkpoint").exists()
    result = run_job(request(steps=60, pause=0.05), tmp_path / "vol")
    assert result["status"] == "done"
    assert result["out"] == "runs/one"
    assert result["notes"][0].startswith("continued from step ")
    undisturbed = run_job(request(steps=60), tmp_path / "other")
    assert undisturbed["metrics"] == result["metrics"]
    assert payload(tmp_path / "vol" / "runs" / "one") == payload(tmp_path / "other" / "runs" / "one")
    assert run_job(request(steps=60, pause=0.05), tmp_path / "vol")["notes"][-1] == "already done"


def test_inputs_on_the_volume_become_paths_below_its_mount(count_up: str, tmp_path: Path) -> None:
    run_job(request(steps=1, data="vol:data/abc/set"), tmp_path)
    assert f"data: {tmp_path}/data/abc/set" in (tmp_path / "runs" / "one" / "config.yaml").read_text()


@pytest.mark.parametrize("how", ["user", "partial", "defect"])
def test_a_mistake_is_an_answer_and_is_not_retried(count_up: str, tmp_path: Path, how: str) -> None:
    answer = run_job(request(steps=3, fail_at=1, how=how), tmp_path)
    assert answer["status"] == "failed"
    assert answer["error"]["user"] is (how != "defect")
    assert answer["metrics"] == ({"good": 4} if how == "partial" else {})
    json.dumps(answer)


def test_an_interrupt_is_no_answer_so_that_the_platform_starts_it_again(count_up: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_job(request(steps=3, fail_at=1, how="interrupt"), tmp_path)


def test_attempts_of_one_submission_share_a_time_budget(count_up: str, tmp_path: Path) -> None:
    began = time.monotonic()
    answer = run_job(request(timeout=1, steps=10_000, pause=0.01), tmp_path)
    assert time.monotonic() - began < 60  # 100 s to the end
    assert answer["status"] == "interrupted"
    assert answer["error"]["exit_code"] == 3
    step = json.loads((tmp_path / "runs" / "one" / "state" / "0.json").read_text())["step"]
    assert step > 0
    assert (
        run_job(request(timeout=1, steps=10_000, pause=0.01), tmp_path)["status"] == "interrupted"
    )  # a retry: no time left
    assert json.loads((tmp_path / "runs" / "one" / "state" / "0.json").read_text())["step"] == step
    more = run_job(request(timeout=600, submission="later", steps=step, pause=0.01), tmp_path / "b")
    assert more["status"] == "done"


def test_a_new_submission_has_time_of_its_own(count_up: str, tmp_path: Path) -> None:
    run_job(request(timeout=1, steps=150, pause=0.01), tmp_path)
    assert run_job(request(timeout=600, submission="two", steps=150, pause=0.01), tmp_path)["status"] == "done"


def test_commits_go_on_when_one_fails_and_the_last_one_always_comes(capfd: pytest.CaptureFixture[str]) -> None:
    times: list[str] = []
    second = threading.Event()

    def commit() -> None:
        times.append(threading.current_thread().name)
        if len(times) == 1:
            raise OSError("busy")
        second.set()

    with committing(commit, every=0.01):
        assert second.wait(5)
    assert times[-1] == threading.main_thread().name
    assert "a commit of the volume failed and will be repeated: busy" in capfd.readouterr().err


def test_finetuning_killed_between_steps_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """The body of the Modal function, the real training loop: two steps, SIGKILL, the retry of the same request."""
    episodes = painted.PaintedSource(3, 16, cameras=("cam_front",))
    for name in ("killed", "whole"):
        writer = registry.get("formats", "act-hdf5").create(tmp_path / name / "data", episodes.card)
        for index in range(3):
            writer.commit(writer.stage(episodes.episode(index)))
        writer.finalize(episodes.card)
    _, config = load_recipe("finetune-wan", "smoke")
    train = config["train"] | {"steps": 16, "checkpoint_every": 1}
    order = request(command="finetune-wan", **config | {"data": "vol:data", "train": train})
    child = in_container(order, tmp_path / "killed")
    state = tmp_path / "killed" / "runs" / "one" / "state"
    while latest_step(state) < 2:
        assert child.poll() is None, "the child ended before it could be killed"
        time.sleep(0.005)
    child.kill()
    child.communicate()
    reached = latest_step(state)
    assert 2 <= reached < 16
    result = run_job(order, tmp_path / "killed")
    assert (result["status"], result["metrics"]["steps"]) == ("done", 16)
    run_job(order, tmp_path / "whole")
    there, here = (
        {**payload(tmp_path / name / "runs"), **payload(tmp_path / name / "data")} for name in ("killed", "whole")
    )
    assert {"one/checkpoint/model.safetensors", "one/state/step_000000016/optimizer.pt"} <= here.keys()
    assert there == here


def latest_step(state: Path) -> int:
    return max((int(p.name.rpartition("_")[2]) for p in state.glob("step_*")), default=0)
