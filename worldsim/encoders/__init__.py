"""Frozen networks that turn text and pictures into numbers. They run once, into columns; no trainer loads one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from worldsim.core.errors import UserError

RANDOM_SEED = 0
"""Random twins are the same everywhere: their weights follow from this seed."""


def seeded[T](build: Callable[[], T], seed: int = RANDOM_SEED) -> T:
    """Build a module with weights that follow from ``seed`` alone; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def from_folder(cls: Any, folder: Path, part: str, **options: Any) -> Any:
    """``cls.from_pretrained`` of one part of a folder in diffusers' layout.

    Raises:
        UserError: the part is missing or unreadable; names the folder.
    """
    if not (folder / part).is_dir():
        raise UserError(f"{folder} has no {part}/: it is not a whole model in diffusers' layout", ["ls", folder])
    try:
        return cls.from_pretrained(folder, subfolder=part, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / part} cannot be loaded: {error}") from error
