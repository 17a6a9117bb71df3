"""On-disk dataset formats: each file reads or writes one of them, as a stream of episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldsim.core import registry
from worldsim.core.errors import UserError
from worldsim.core.protocols import EpisodeSource
from worldsim.data.card import read_card


def detect(path: Path) -> str:
    """The registered name of the format that ``path`` holds; raises when it is none or missing."""
    if not path.exists():
        raise UserError(f"{path} does not exist", "worldsim doctor")
    card = read_card(path) if path.is_dir() else None
    if card is not None:
        return card.card.format
    found = [name for name in registry.names("formats") if registry.get("formats", name).detect(path)]
    if not found:
        known = ", ".join(registry.names("formats"))
        convert = ["worldsim", "convert", path, "--from", "act-hdf5"]  # the one command that can be told the format
        raise UserError(f"{path} holds no dataset in a known format ({known})", convert)
    return found[0]


def open_dataset(path: Path, format: str | None = None, **options: Any) -> EpisodeSource:
    """Open a dataset folder for reading, in the named or the detected format."""
    path = Path(path)
    return registry.get("formats", format or detect(path)).open(path, **options)
