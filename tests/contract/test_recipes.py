"""Every recipe resolves, is complete, and every command has `default` and `smoke`."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from worldsim.core.config import build, load_recipe, recipes_folder, to_values

RECIPES = sorted(recipes_folder().glob("*/*.yaml"))
COMMANDS = sorted({path.parent.name for path in RECIPES})


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe_resolves_and_is_complete(path: Path) -> None:
    command = path.parent.name
    config = importlib.import_module(f"worldsim.commands.{command.replace('-', '_')}").Config
    _, values = load_recipe(command, path.stem)
    resolved = to_values(build(config, values))
    assert _keys(values) == _keys(resolved), "a recipe is flat and complete: it names every key"


def _keys(values: dict, prefix: str = "") -> set[str]:
    out: set[str] = set()
    for key, value in values.items():
        out |= _keys(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key}
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_command_has_default_and_smoke(command: str) -> None:
    names = {path.stem for path in RECIPES if path.parent.name == command}
    assert {"default", "smoke"} <= names


def test_every_command_body_has_recipes() -> None:
    import worldsim.commands as commands

    files = [p for p in Path(commands.__path__[0]).glob("*.py") if not p.stem.startswith("_")]
    bodies = {p.stem.replace("_", "-") for p in files if "class Config" in p.read_text()}
    assert bodies == set(COMMANDS)
