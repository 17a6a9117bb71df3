"""Commands in docs/*.md: each is one that the program knows, and a block can be typed from top to bottom."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

from tests.conftest import ROOT
from worldsim.cli.main import app

TOP = typer.main.get_command(app)
BLOCKS = [
    pytest.param(lines, id=f"{path.stem}-{number}")
    for path in sorted((ROOT / "docs").glob("*.md"))
    for number, block in enumerate(re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf8"), flags=re.S))
    if (lines := [line.split("#")[0].strip() for line in block.splitlines() if line.startswith("worldsim ")])
]


@pytest.mark.parametrize("lines", BLOCKS)
def test_a_block_can_be_typed_in_sequence(lines: list[str]) -> None:
    """Every option is known, and no second run asks for the folder of the first (``runs/<command>/<recipe>``)."""
    folders = []
    for line in lines:
        command, words = TOP, shlex.split(line)[1:]
        path = []
        while words and words[0] in getattr(command, "commands", {}):
            path.append(words.pop(0))
            command = command.commands[path[-1]]
        values = command.make_context("worldsim", words, resilient_parsing=False).params
        folders.append(values.get("out") or f"runs/{'-'.join(path)}/{values.get('config') or 'default'}")
    assert len(set(folders)) == len(folders)


def test_there_are_blocks() -> None:
    assert BLOCKS
