"""``worldsim train``: anything trainable. A recipe's key ``trains`` names what; each is one file, ``_train_<what>.py``.

Such a file holds a ``Config`` (with a field ``trains``), ``run(config, context) -> Result`` and, for ``--dry-run``,
``plan(config, seed, processes) -> dict``. A ``Config`` with ``pick`` may choose further, by any other key of the recipe.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from worldsim.core.errors import UserError, did_you_mean
from worldsim.core.runs import RunContext
from worldsim.core.types import Result

PREFIX = "_train_"


class Config:
    """Stands for the configs of everything trainable; see :func:`worldsim.core.config.build`."""

    @staticmethod
    def pick(values: Mapping[str, Any]) -> Any:
        return trainable(values.get("trains")).Config


def names() -> list[str]:
    """What can be trained, as the key ``trains`` spells it. Imports nothing."""
    return sorted(p.stem.removeprefix(PREFIX).replace("_", "-") for p in Path(__file__).parent.glob(f"{PREFIX}*.py"))


def trainable(name: Any) -> ModuleType:
    """The file that trains ``name``.

    Raises:
        UserError: there is none of that name, or the recipe has no key ``trains``.
    """
    if name is None:
        raise UserError(
            f"the recipe has no key 'trains'; it is one of {', '.join(names())}", "worldsim train --config NAME"
        )
    known = names()
    if str(name) not in known:
        raise UserError(f"'trains' = '{name}' is nothing that can be trained{did_you_mean(str(name), known)}")
    return importlib.import_module(f"worldsim.commands.{PREFIX}{str(name).replace('-', '_')}")


def run(config: Any, context: RunContext) -> Result:
    """Train it; see the docstring of its file."""
    return trainable(config.trains).run(config, context)


def plan(config: Any, seed: int = 0, processes: int = 1) -> dict[str, Any]:
    """What would be trained on, and how large it is; what its file can say."""
    module = trainable(config.trains)
    return module.plan(config, seed=seed, processes=processes) if hasattr(module, "plan") else {}
