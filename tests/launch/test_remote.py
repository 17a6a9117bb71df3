"""``--remote`` from submission to fetched files, with a backend that rents nothing."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest

from tests.launch.fake import FakeBackend
from worldsim.core.errors import RemoteError, UserError
from worldsim.core.task import Task
from worldsim.launch import launch, records, runs, upload
from worldsim.launch.job import Gpu, Job, Launch
from worldsim.launch.plan import describe, plan_text


@pytest.fixture
def job(count_up: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``job(launch options, config…)``: count-up on Modal, from a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def make(options: Launch | None = None, **config) -> Job:
        options = options or Launch()
        return Job(count_up, config, "runs/here", device="cpu", launch=replace(options, remote=True))

    return make


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "set"
    for name in ("episodes/a.bin", "worldsim.json", "columns/latent/x.npy", "episodes/.tmp-b.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_attached_the_files_come_home(job, fake: FakeBackend, tmp_path: Path, capfd) -> None:
    result = launch(job(steps=3))
    assert (result["status"], result["out"], result["metrics"]["steps"]) == ("done", "runs/here", 3)
    names = {p.relative_to(tmp_path / "runs/here").as_posix() for p in (tmp_path / "runs/here").rglob("*") if p.is_file()}
    assert names == {"config.yaml", "result.json", "provenance.json", "checkpoint/sum.txt"}  # state/ stays there
    said = capfd.readouterr().err
    run = result["run"]
    assert f"worldsim runs logs {run} --follow" in said
    assert f"worldsim runs cancel {run}" in said
    assert records.load(run).status == "done"
    assert launch(job(steps=3))["notes"][-1] == "already done"


def test_detached_it_is_submitted_listed_followed_and_pulled(job, fake: FakeBackend, tmp_path: Path, capfd) -> None:
    fake.asleep = True
    result = launch(job(Launch(detach=True), steps=3))
    run = result["run"]
    assert (result["status"], result["next"]) == ("submitted", f"worldsim runs logs {run} --follow")
    assert not (tmp_path / "runs").exists()
    assert [row["status"] for row in runs.list_runs()] == ["running"]
    with pytest.raises(RemoteError, match="has left no files yet"):
        runs.pull(run)
    fake.asleep = False
    assert [row["status"] for row in runs.list_runs()] == ["done"]
    assert run in runs.table(runs.list_runs())
    runs.logs(run, follow=True)
    assert capfd.readouterr().out == "logs of fc-0 followed\n"
    assert runs.pull(run[:-3], "elsewhere") == "elsewhere"
    assert (tmp_path / "elsewhere" / "checkpoint" / "sum.txt").read_text() == "6\n"
    assert runs.cancel(run) == f"{run} has already ended: done"


def test_a_running_run_is_not_started_twice_and_can_be_cancelled_and_continued(job, fake: FakeBackend) -> None:
    fake.asleep = True
    run = launch(job(Launch(detach=True)))["run"]
    with pytest.raises(UserError, match=f"already going on as {run}"):
        launch(job(Launch(detach=True)))
    assert "cancelled" in runs.cancel(run)
    assert records.load(run).status == "cancelled"
    fake.asleep = False
    assert launch(job())["run"] == run


def test_another_config_or_folder_is_another_run(count_up: str) -> None:
    task = Task(count_up, {"steps": 3}, "runs/a")
    others = [replace(task, config={"steps": 4}), replace(task, out="runs/b"), replace(task, seed=1)]
    assert len({records.run_id(t) for t in [task, *others]}) == 4
    assert records.run_id(replace(task, device="cuda")) == records.run_id(task)


def test_leaving_with_ctrl_c_leaves_the_run_alone(job, fake: FakeBackend, monkeypatch, capfd) -> None:
    def leave(name: str) -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "_run", leave)
    with pytest.raises(KeyboardInterrupt):
        launch(job())
    record = records.load_all()[0]
    assert record.status == "running"
    assert f"worldsim runs pull {record.run}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("how", "kind", "message"), [("user", UserError, "the step is wrong"), ("defect", RemoteError, "Zero")]
)
def test_a_remote_failure_is_raised_here(job, fake: FakeBackend, how: str, kind: type, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        launch(job(steps=3, fail_at=1, how=how))
    assert type(caught.value) is kind
    assert runs.list_runs()[0]["status"] == "failed"


def test_data_is_uploaded_once_by_content(job, fake: FakeBackend, dataset: Path, capfd) -> None:
    result = launch(job(data="data/set"))
    assert result["status"] == "done"
    digest = upload.digest(dataset)
    assert sorted(fake.sent) == [
        f"data/{digest}/complete-set",
        f"data/{digest}/set/episodes/a.bin",
        f"data/{digest}/set/worldsim.json",
    ]
    config = fake.volume("worldsim") / "runs" / result["run"] / "config.yaml"
    assert f"data: {fake.volume('worldsim')}/data/{digest}/set" in config.read_text()
    fake.sent.clear()
    launch(replace(job(data=str(dataset), steps=2), out="runs/again"))  # the same bytes, the folder named otherwise
    assert fake.sent == []
    assert "already on the volume" in capfd.readouterr().err
    (dataset / "columns" / "more.npy").write_bytes(b"derived")
    assert upload.digest(dataset) == digest
    (dataset / "episodes" / "a.bin").write_bytes(b"changed data..")
    assert upload.digest(dataset) != digest


def test_an_interrupted_upload_is_repeated(job, fake: FakeBackend, dataset: Path) -> None:
    digest = upload.digest(dataset)
    fake.send("worldsim", [(b"half", f"data/{digest}/set/episodes/a.bin")])
    launch(job(data="data/set"))
    assert (fake.volume("worldsim") / f"data/{digest}/set/episodes/a.bin").read_bytes() == b"episodes/a.bin"


def test_a_single_file_is_uploaded_too(job, fake: FakeBackend, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"clip")
    launch(job(data="clip.mp4"))
    digest = upload.digest(tmp_path / "clip.mp4")
    assert (fake.volume("worldsim") / "data" / digest / "clip.mp4").read_bytes() == b"clip"


def test_a_volume_path_is_used_in_place(job, fake: FakeBackend) -> None:
    task, inputs = upload.remote_task(job(data="vol:/data/abc/set").task)
    assert (task.config["data"], inputs) == ("vol:data/abc/set", [])
    assert upload.local_task(task, Path("/vol")).config["data"] == "/vol/data/abc/set"
    with pytest.raises(UserError, match=r"'data' = 'vol:\.\./x'"):
        upload.remote_task(job(data="vol:../x").task)


def test_the_output_of_an_earlier_remote_run_is_found_on_the_volume(job, fake: FakeBackend) -> None:
    fake.asleep = True
    run = launch(job(Launch(detach=True)))["run"]
    task, inputs = upload.remote_task(job(data="runs/here").task)
    assert (task.config["data"], inputs) == (f"vol:runs/{run}", [])


@pytest.mark.parametrize("value", ["/home/me/cache", "~/cache", "./cache", "../cache", "file:///cache"])
def test_a_local_path_is_refused_before_anything_is_rented(job, fake: FakeBackend, value: str) -> None:
    fake.offline = True  # nothing may even be asked
    with pytest.raises(UserError, match=r"'cache' = .*is a path on this machine") as caught:
        launch(job(cache=value))
    assert "modal volume put" in (caught.value.command or "")
    assert fake.rented == []
    with pytest.raises(UserError, match="'cache'"):
        describe(job(cache=value))


def test_an_existing_relative_path_at_another_key_is_refused(job, dataset: Path) -> None:
    with pytest.raises(UserError, match="'cache' = 'data/set'"):
        upload.remote_task(job(cache="data/set").task)
    assert upload.remote_task(job(cache="some/hub-name").task)[0].config["cache"] == "some/hub-name"


@pytest.mark.parametrize("options", [Launch(gpu=Gpu("H100", 2)), Launch(timeout=9 * 3600)])
def test_an_expensive_run_is_asked_about(job, fake: FakeBackend, options: Launch, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UserError, match=r"costs at most \$\d+.*--yes"):
        launch(job(options))
    assert fake.rented == []

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    with pytest.raises(UserError, match="nothing was rented"):
        launch(job(options))
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    launch(job(options))
    launch(job(replace(options, yes=True)))
    assert len(fake.rented) == 2


def test_an_out_folder_with_something_else_is_refused_before_anything_is_rented(
    job, fake: FakeBackend, tmp_path: Path
) -> None:
    launch(job(steps=1))
    with pytest.raises(UserError, match="runs/here holds something else") as caught:
        launch(job(steps=2))
    assert caught.value.command == "again out=runs/here-2"
    assert len(fake.rented) == 1


def test_a_wrong_key_costs_nothing(job, fake: FakeBackend) -> None:
    with pytest.raises(UserError, match="unknown key 'stepz'; did you mean 'steps'"):
        launch(job(stepz=3))
    assert fake.rented == []


def test_a_folder_with_something_else_is_not_overwritten_by_a_pull(job, fake: FakeBackend, tmp_path: Path) -> None:
    run = launch(job())["run"]
    assert runs.pull(run) == "runs/here"  # its own folder: again is fine
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("command: convert\n")
    with pytest.raises(UserError, match="other holds something else"):
        runs.pull(run, "other")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["config.yaml"]


def test_runs_are_listed_without_a_connection(job, fake: FakeBackend) -> None:
    fake.asleep = True
    launch(job(Launch(detach=True)))
    fake.offline = True
    assert [row["status"] for row in runs.list_runs()] == ["running?"]
    with pytest.raises(UserError, match="no remote run 'nothing'"):
        runs.logs("nothing")
    assert runs.table([]) == "no remote run was started from this machine"


def test_dry_run_says_what_where_and_how_much(job, dataset: Path) -> None:
    plan = describe(job(Launch(gpu=Gpu("H100", 2), timeout=7200), data="data/set"))
    json.dumps(plan)
    text = plan_text(plan)
    for words in (
        "worldsim.launch.modal.run",
        "volume:   worldsim",
        "H100:2",
        "requirements.lock",
        "90.0 GiB",
        "DOES NOT FIT",
    ):
        assert words in text
    assert f"at most ${plan['hardware']['usd_at_most']:.2f} in 2 h" in text
    assert plan["remote"]["uploads"] == [
        {"key": "data", "path": "data/set", "volume_path": "data/<content hash>/set", "bytes": 27}
    ]
    here = plan_text(describe(replace(job(data="data/set"), launch=Launch())))
    assert "this machine" in here
    assert "cost" not in here


def test_dry_run_of_data_on_the_volume_does_not_look_for_it_here(job) -> None:
    assert describe(job(data="vol:data/x"))["plan"] == {}


def _recorded(out: str) -> str:
    """The record of a finished remote run whose files were never fetched; returns its folder on the volume."""
    record = records.Record("convert-x-1", "fc", "convert", "x", out, "worldsim", None, 60, None, 1.0, "done", None, {})
    record.save()
    return record.folder


@pytest.mark.parametrize("command", ["finetune-wan", "infer", "eval-video"])
def test_the_output_of_an_earlier_remote_run_is_planned_without_being_fetched(command: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = _recorded("data/mine")
    plan = describe(Job(command, {"data": "data/mine"}, "runs/next", launch=Launch(remote=True)))
    assert (plan["plan"], plan["remote"]["uploads"], plan["fits"]) == ({}, [], None)
    assert plan["remote"]["on_volume"] == [{"key": "data", "volume_path": folder}]
    assert f"data = vol:{folder}, on the volume" in plan_text(plan)
    with pytest.raises(UserError, match="data/mine"):  # here it is looked for
        describe(Job(command, {"data": "data/mine"}, "runs/next"))


def test_the_output_of_an_earlier_remote_run_is_submitted_without_being_fetched(
    fake: FakeBackend, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = _recorded("data/mine")
    fake.asleep = True
    launch(Job("infer", {"data": "data/mine"}, "runs/next", launch=Launch(remote=True, detach=True)))
    assert records.load("infer").task["config"]["data"] == f"vol:{folder}"
    assert fake.sent == []


def test_a_file_of_actions_is_uploaded_and_other_values_are_not(job, fake: FakeBackend, tmp_path: Path) -> None:
    for name in ("acts.npy", "dataset", "raw"):
        (tmp_path / name).write_bytes(b"rows")
    task, (sent,) = upload.remote_task(job(actions="acts.npy").task)
    assert (sent.key, task.config["actions"]) == ("actions", f"vol:{sent.remote}")
    for value in ("raw", "dataset", "policy:scripted", "lapa@0123", "lapa"):
        task, inputs = upload.remote_task(job(actions=value).task)
        assert (task.config["actions"], inputs) == (value, [])
    with pytest.raises(UserError, match="'actions'"):
        upload.remote_task(job(actions="/gone/acts.npy").task)


@pytest.fixture
def columns(dataset: Path) -> Path:
    """Two action columns and other derived files in the dataset."""
    for name in ("actions/lapa@ab/e.npy", "actions/raw@cd/e.npy", "latents/vae@ef/e.npy"):
        (dataset / "columns" / name).parent.mkdir(parents=True)
        (dataset / "columns" / name).write_bytes(name.encode())
    return dataset


ACTION_COLUMNS = ["columns/actions/lapa@ab/e.npy", "columns/actions/raw@cd/e.npy"]


def _sent(fake: FakeBackend, job: Job) -> list[str]:
    """What an upload of the job's one input puts on the volume, less the marker."""
    fake.sent.clear()
    launch(replace(job, out=f"runs/{len(fake.rented)}"))
    return sorted(path.split("/", 3)[3] for path in fake.sent if path.count("/") > 2)


@pytest.mark.parametrize(
    ("actions", "kept"),
    [("lapa", True), ("lapa@ab", True), ("raw@cd", True), ("raw", False), ("lapa@zz", False), ("dataset", False)],
)
def test_a_named_action_column_travels_with_its_dataset(
    job, fake: FakeBackend, columns: Path, actions: str, kept: bool
) -> None:
    sent = _sent(fake, job(data="data/set", actions=actions))
    assert sent == [*(ACTION_COLUMNS if kept else []), "episodes/a.bin", "worldsim.json"]
    keep = "columns/actions" if kept else None
    assert (upload.digest(columns, keep) != upload.digest(columns)) == kept


def test_the_action_column_of_a_model_travels_too(job, columns: Path, tmp_path: Path) -> None:
    card = tmp_path / "run" / "checkpoint" / "card.json"
    card.parent.mkdir(parents=True)
    for name, keep in (("lapa@ab", "columns/actions"), ("raw", None)):
        card.write_text(json.dumps({"action_column": name}))
        _, inputs = upload.remote_task(job(data="data/set", model="run").task)
        assert {item.key: item.keep for item in inputs} == {"data": keep, "model": None}


@pytest.mark.parametrize("form", ["file", "directory"])
def test_another_programs_checkpoint_travels_with_its_note_and_its_column(
    job, fake: FakeBackend, columns: Path, tmp_path: Path, form: str
) -> None:
    path, note = tmp_path / "ep30.ckpt", tmp_path / "ep30.yaml"
    weights = path if form == "file" else path / "checkpoint" / "mp_rank_00_model_states.pt"
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"w")
    places = set()
    for actions in ("lapa@ab", "raw"):
        note.write_text(f"fps: 5\nsize: 32x32\ncamera: c\nactions: {actions}\n")
        task, inputs = upload.remote_task(job(data="data/set", model="ep30.ckpt").task)
        assert [item.keep for item in inputs] == ["columns/actions" if actions == "lapa@ab" else None, None, None]
        assert {Path(item.remote).parent for item in inputs[1:]} == {Path(task.config["model"].removeprefix("vol:")).parent}
        places.add(task.config["model"])
    assert len(places) == 2, "another note is another input"
    launch(job(data="data/set", model="ep30.ckpt"))
    there = fake.volume("worldsim") / task.config["model"].removeprefix("vol:")
    assert there.exists()
    assert there.with_suffix(".yaml").read_text() == note.read_text()


def test_a_folder_of_columns_is_sent_with_its_columns(job, fake: FakeBackend, columns: Path) -> None:
    sent = _sent(fake, job(columns="data/set"))
    assert set(sent) >= {*ACTION_COLUMNS, "columns/latents/vae@ef/e.npy", "columns/latent/x.npy"}


def test_a_baseline_run_is_uploaded_like_a_model(job, fake: FakeBackend, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "weights").write_bytes(b"w")
    task, (sent,) = upload.remote_task(job(baseline="other").task)
    assert (sent.key, task.config["baseline"]) == ("baseline", f"vol:{sent.remote}")


def test_keys_that_take_an_input_are_keys_of_a_command() -> None:
    import pkgutil

    import worldsim.commands
    from worldsim.commands import train
    from worldsim.worker import command_module

    names = [m.name for m in pkgutil.iter_modules(worldsim.commands.__path__) if not m.name.startswith("_")]
    modules = [command_module(name) for name in names] + [train.trainable(name) for name in train.names()]
    configs = [module.Config for module in modules if hasattr(getattr(module, "Config", None), "__dataclass_fields__")]

    def keys(config: type) -> set[str]:
        hints = get_type_hints(config)
        below = [kind for kind in hints.values() if hasattr(kind, "__dataclass_fields__")]
        return set(config.__dataclass_fields__).union(*map(keys, below))

    assert set().union(*map(keys, configs)) >= upload.INPUT_KEYS
