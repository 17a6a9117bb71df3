"""The Modal side, offline: what can be checked without a token, and what is said without one."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.launch.test_container import request
from worldsim.core.config import recipes_folder
from worldsim.core.errors import RemoteError
from worldsim.launch import launch, runs
from worldsim.launch.cost import hardware
from worldsim.launch.hardware import ATTEMPT_SECONDS, need
from worldsim.launch.job import Gpu, Job, Launch

modal = pytest.importorskip("modal")


@pytest.fixture
def ours():
    from worldsim.launch import modal as ours

    return ours


def test_the_app_at_the_root_is_the_app(ours) -> None:
    import modal_app

    assert modal_app.app is ours.app
    assert modal_app.run is ours.run


def test_the_function_is_reshaped_for_each_run(ours, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict = {}
    plain = type(ours.run).with_options
    monkeypatch.setattr(type(ours.run), "with_options", lambda self, **kw: asked.update(kw) or plain(self, **kw))
    volume = modal.Volume.from_name("worldsim", create_if_missing=True, version=2)
    rented = hardware(need("finetune-wan"), Launch(gpu=Gpu("H100", 2), timeout=7200))
    function = ours.shaped(rented, 7200, volume, [modal.Secret.from_name("wandb")])
    assert isinstance(function, modal.Function)
    assert (asked["gpu"], asked["cpu"], asked["memory"]) == ("H100:2", 16.0, 128 * 1024)
    assert asked["timeout"] == 7800  # above the run's own budget, so that it can save
    assert asked["volumes"] == {"/vol": volume}
    ours.shaped(rented, 7 * 24 * 3600, volume, [])
    assert asked["timeout"] == ATTEMPT_SECONDS


def test_the_functions_body_runs_here(ours, count_up: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Modal says that no volume is mounted here
        result = ours.run.local(request(steps=2), "worldsim", str(tmp_path))
    assert (result["status"], result["out"]) == ("done", "runs/one")
    assert (tmp_path / "runs/one/checkpoint/sum.txt").read_text() == "3\n"


def test_the_image_holds_what_a_worker_needs(ours) -> None:
    assert ours.lock_file().name == "requirements.lock"
    assert ours.lock_file().exists()
    assert recipes_folder().is_dir()
    assert isinstance(ours.build_image(), modal.Image)


def test_without_a_token_there_is_one_sentence_and_a_command(ours, count_up: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RemoteError) as caught:
        launch(Job(count_up, {}, "out", launch=Launch(remote=True)))
    assert (caught.value.exit_code, caught.value.command) == (3, "modal setup")
    assert "\n" not in caught.value.sentence
    assert "token" in caught.value.sentence
    assert not list((tmp_path / "worldsim-home").glob("runs/*"))


def test_a_volume_of_version_1_is_used_as_it_is(ours, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    class Volume:
        def __init__(self, version: int | None) -> None:
            self.version = version

        def hydrate(self) -> Volume:
            if self.version == 2:
                raise modal.exception.InvalidError("Volume 'old' exists but has version v1, not v2 as requested.")
            return self

        @staticmethod
        def from_name(name: str, create_if_missing: bool = False, version: int | None = None) -> Volume:
            return Volume(version)

    monkeypatch.setattr(modal, "Volume", Volume)
    assert ours.open_volume("old").version is None
    assert "--volume NAME" in capfd.readouterr().err


def test_secrets_asked_for_must_exist_and_the_usual_ones_are_missed_aloud(ours, monkeypatch, capfd) -> None:
    class Secret:
        def __init__(self, name: str) -> None:
            self.name = name

        def hydrate(self) -> Secret:
            if self.name != "wandb":
                raise modal.exception.NotFoundError("no such secret")
            return self

        from_name = classmethod(lambda cls, name: cls(name))

    monkeypatch.setattr(modal, "Secret", Secret)
    assert [secret.name for secret in ours.find_secrets(())] == ["wandb"]
    assert "modal secret create huggingface HF_TOKEN=$HF_TOKEN" in capfd.readouterr().err
    with pytest.raises(RemoteError, match="no Modal secret named 'mine'") as caught:
        ours.find_secrets(("mine",))
    assert caught.value.command == "modal secret create mine KEY=value"


def test_status_knows_running_done_expired_and_failed(ours, monkeypatch, count_up: str) -> None:
    from worldsim.launch.records import Record

    record = Record("r", "fc-1", count_up, "default", "out", "worldsim", None, 60, None, 0.0, "running", None, {})
    answers: list = [
        TimeoutError(),
        {"status": "done"},
        modal.exception.OutputExpiredError(),
        modal.exception.FunctionTimeoutError("too long"),
        modal.exception.ConnectionError("away"),
    ]

    class Call:
        @staticmethod
        def get(timeout: int):
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(modal.FunctionCall, "from_id", staticmethod(lambda name: Call))
    backend = ours.ModalBackend()
    assert backend.status(record) is None
    assert backend.status(record) == {"status": "done"}
    assert backend.status(record)["status"] == "expired"
    assert backend.status(record)["status"] == "failed"
    with pytest.raises(RemoteError, match="Modal cannot be reached: away"):
        backend.status(record)
    assert runs.refresh(record, backend=_Never()) is not None


class _Never:
    def status(self, record):
        return None


def test_a_spoilt_settings_file_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "modal.toml").write_text("token_id = 3\n")
    code = "from worldsim.launch.backend import connect\ntry:\n    connect()\nexcept Exception as e:\n"
    code += "    print(type(e).__name__, e.command, e.sentence)"
    environment = {**os.environ, "MODAL_CONFIG_PATH": str(tmp_path / "modal.toml")}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert "RemoteError modal setup Modal's own settings are wrong" in said
    assert str(tmp_path / "modal.toml") in said


def test_nothing_imports_modal_before_it_is_needed() -> None:
    code = "import sys, worldsim.launch, worldsim.launch.plan, worldsim.launch.runs, worldsim.launch.remote\n"
    code += "sys.exit(any(name in sys.modules for name in ('modal', 'torch', 'lerobot')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
