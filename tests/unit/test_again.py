"""What stands behind ``try:`` and ``next:``: words that can be typed, quoted, with nothing lost that was typed before."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from tests.conftest import ROOT
from worldsim.cli.again import hint
from worldsim.cli.main import app
from worldsim.core.errors import UserError, again, and_more
from worldsim.core.types import Result
from worldsim.train import distributed

TOP = typer.main.get_command(app)
ERRORS = {"UserError": 1, "RemoteError": 1, "PartialResult": 1}


def typed(line: str, command: str | None) -> str:
    return hint(TOP, shlex.split(line), command)


@pytest.mark.parametrize(
    ("line", "changes", "expected"),
    [
        ("infer data/m --model runs/m --frames 41", {"frames": 20}, "infer data/m --model runs/m --frames 20"),
        ("infer --frames=41 data/m --json", {"frames": 20}, "infer --frames 20 data/m --json"),
        ("infer data/m", {"out": "runs/b"}, "infer data/m --out runs/b"),
        ("finetune-wan 'my data'", {"train.lr": 1e-5}, "finetune-wan 'my data' --set train.lr=1e-05"),
        ("finetune-wan d --set a.b=1 --set train.lr=2", {"train.lr": 3}, "finetune-wan d --set a.b=1 --set train.lr=3"),
        ("finetune-wan d --set=train.lr=2", {"train.lr": 3}, "finetune-wan d --set train.lr=3"),
        ("eval video d --model m", {"start": 3, "frames": 4}, "eval video d --model m --set start=3 --frames 4"),
        ("finetune-wan --remote --gpu H100:4", {"yes": True}, "finetune-wan --remote --gpu H100:4 --yes"),
        ("convert a b", {"source": "a/x y"}, "convert 'a/x y' b"),
        ("infer", {"data": "data/größe"}, "infer 'data/größe'"),
        ("extract-latents d --checkpoint c", {"checkpoint": None}, "extract-latents d"),
        ("finetune-wan d --set train.stepz=3", {"train.stepz->train.steps": 3}, "finetune-wan d --set train.steps=3"),
        ("infer d --set camera=a --seed 3", {"camera": "b c"}, "infer d --set 'camera=b c' --seed 3"),
    ],
)
def test_only_the_named_option_changes(line: str, changes: dict, expected: str) -> None:
    assert typed(line, again(changes)) == f"worldsim {expected}"


def test_an_error_without_a_command_shows_the_help_of_the_one_that_was_typed() -> None:
    assert typed("eval video d --model m", None) == "worldsim eval video --help"


def test_the_datasets_name_stands_where_an_error_says_data() -> None:
    assert typed("infer 'my data' --model m", "worldsim doctor DATA") == "worldsim doctor 'my data'"


def test_words_are_quoted_and_text_is_left() -> None:
    path = Path("my data/größe")
    assert shlex.split(str(UserError("x", ["rm", path]).command)) == ["rm", str(path)]
    assert UserError("x", "a && b").command == "a && b"
    assert shlex.split(str(Result(next=["worldsim", "infer", path]).next)) == ["worldsim", "infer", str(path)]


def test_what_a_rank_suggests_reaches_the_door(tmp_path: Path) -> None:
    distributed.write_error(tmp_path, UserError("x", again(frames=20)))
    record = distributed.read_error(tmp_path)
    assert record is not None
    error = distributed.as_exception(record)
    assert isinstance(error, UserError)
    assert typed("infer d --nproc 2 --frames 41", error.command) == "worldsim infer d --nproc 2 --frames 20"


def test_one_name_has_no_more() -> None:
    assert (and_more(["a"]), and_more(["a", "b"])) == ("", " (and 1 more)")


def commands() -> Iterator[tuple[str, ast.expr]]:
    """Every expression that is handed to an error as its command, or to a result as what comes next."""
    for path in sorted((ROOT / "worldsim").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            if name in ERRORS and len(node.args) > 1:
                yield where, node.args[1]
            if name == "Result":
                yield from ((where, keyword.value) for keyword in node.keywords if keyword.arg == "next")


def test_no_command_has_a_gap_for_the_reader_to_fill() -> None:
    found = list(commands())
    assert len(found) > 100
    gaps = [where for where, command in found if "…" in ast.unparse(command) or "..." in ast.unparse(command)]
    assert not gaps


def test_no_command_holds_a_path_that_nobody_quoted() -> None:
    """Text with something filled in: only numbers, names of this program, and what is quoted by hand."""
    harmless = {"name", "geometry.name", "record.run", "run", "height", "width", "_lines(TEMPLATE)", "found"}
    bare = []
    for where, command in commands():
        if isinstance(command, ast.JoinedStr):
            parts = [ast.unparse(v.value) for v in command.values if isinstance(v, ast.FormattedValue)]
            bare += [f"{where}: {p}" for p in parts if p not in harmless and "quote(" not in p and not p.isupper()]
    assert not bare
