"""A run folder belongs to one config; a run that came to nothing does not occupy it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from worldsim.core.config import config
from worldsim.core.errors import UserError
from worldsim.core.runs import RunContext, claim, content_digest, write_provenance, write_result


@config
class Engine:
    rate: float = 1.0
    hidden: int = 0


@config
class Work:
    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("patience", "engine.hidden")

    data: str = "a"
    steps: int = 1
    patience: int = 0
    engine: Engine = Engine()


def test_same_config_continues_then_says_done(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert claim(out, "train", Work(), 0) is None
    assert claim(out, "train", Work(), 0) is None
    write_result(RunContext("train", out), "done", {"loss": 1.0}, 2.0)
    done = claim(out, "train", Work(), 0)
    assert done is not None
    assert done["metrics"] == {"loss": 1.0}


@pytest.mark.parametrize(
    ("command", "work", "seed", "named"),
    [
        ("train", Work(steps=2), 0, "steps: 1 there, 2 here"),
        ("train", Work(), 1, "seed: 0 there, 1 here"),
        ("infer", Work(), 0, "command: 'train' there, 'infer' here"),
    ],
)
def test_another_config_is_refused(tmp_path: Path, command: str, work: Work, seed: int, named: str) -> None:
    out = tmp_path / "run"
    claim(out, "train", Work(), 0)
    with pytest.raises(UserError, match=named):
        claim(out, command, work, seed)


def test_keys_outside_the_identity_may_change(tmp_path: Path) -> None:
    out = tmp_path / "run"
    claim(out, "train", Work(), 0)
    assert claim(out, "train", Work(patience=5), 0) is None
    assert "patience: 5" in (out / "config.yaml").read_text()
    assert claim(out, "train", Work(engine=Engine(hidden=3)), 0) is None
    with pytest.raises(UserError, match=r"engine\.rate: 1\.0 there, 2\.0 here"):
        claim(out, "train", Work(engine=Engine(rate=2.0)), 0)


def test_a_run_that_came_to_nothing_gives_way(tmp_path: Path) -> None:
    out = tmp_path / "run"
    claim(out, "train", Work(data="mistyped"), 0)
    write_result(RunContext("train", out), "failed", {}, 0.1)
    assert claim(out, "train", Work(data="right"), 0) is None
    (out / "payload").write_text("x")
    write_result(RunContext("train", out), "failed", {}, 0.1)
    with pytest.raises(UserError, match="data"):
        claim(out, "train", Work(), 0)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        claim(tmp_path, "train", Work(), 0)
    with pytest.raises(UserError, match="is a file"):
        claim(tmp_path / "notes.txt", "train", Work(), 0)


def test_provenance_names_inputs_by_content(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "x").write_text("1")
    context = RunContext("train", tmp_path, inputs={"data": str(data)})
    write_provenance(context, Work())
    first = (tmp_path / "provenance.json").read_text()
    (data / "x").write_text("2")
    write_provenance(context, Work())
    assert first != (tmp_path / "provenance.json").read_text()


def test_results_are_not_mixed_with_those_of_other_data(tmp_path: Path) -> None:
    """Nothing made yet: new data are taken. Something made: refused. Done: said to be done only while the data stay."""
    out, data = tmp_path / "run", tmp_path / "data"
    (data / "columns").mkdir(parents=True)
    (data / "x").write_text("1")
    claim(out, "train", Work(), 0)
    RunContext("train", out).reads("data", data)
    (data / "x").write_text("2")
    context = RunContext("train", out)
    context.reads("data", data)
    (out / "payload").write_text("made of 2")
    RunContext("train", out).reads("data", data)
    (data / "x").write_text("3")
    with pytest.raises(UserError, match=f"{data} has changed since {out} was made from it"):
        RunContext("train", out).reads("data", data)
    write_provenance(context, Work())  # says what was read at the beginning, not what is there at the end
    write_result(context, "done", {}, 0.1)
    with pytest.raises(UserError, match="has changed since"):
        claim(out, "train", Work(), 0)
    (data / "x").write_text("2")
    (data / "columns" / "derived.npy").write_text("new")
    assert claim(out, "train", Work(), 0) is not None


def test_a_run_is_read_by_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "model"
    (run / "checkpoint").mkdir(parents=True)
    (run / "checkpoint" / "w").write_text("1")
    digest = content_digest(run)
    (run / "metrics.jsonl").write_text("{}")
    (run / "films").mkdir()
    (run / "films" / "a.mp4").write_text("x")
    assert content_digest(run) == digest
    (run / "checkpoint" / "w").write_text("2")
    assert content_digest(run) != digest
    assert content_digest(tmp_path / "absent") is None
