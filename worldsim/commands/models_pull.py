"""``worldsim models pull``: the weights of a registered base model, from the Hub into its cache (on the volume, remotely)."""

from __future__ import annotations

from typing import Any

from worldsim.commands._hub import download
from worldsim.core import registry
from worldsim.core.config import config
from worldsim.core.errors import UserError, did_you_mean
from worldsim.core.runs import RunContext
from worldsim.core.types import Result

USES_TORCH = False


@config
class Config:
    """Which weights to fetch.

    Attributes:
        name: a base that a world model's card lists, see ``worldsim models list world-models --json``.
        revision: branch, tag or commit; the newest when null.
    """

    name: str
    revision: str | None = None


def default_out(config: Config) -> str:
    return f"runs/models-pull/{config.name}"


def bases() -> dict[str, dict[str, Any]]:
    """Every base model that a card lists: name -> {source, size}. Imports no plugin."""
    cards = (registry.card("world_models", name) or {} for name in registry.names("world_models"))
    return {name: base for card in cards for name, base in card.get("bases", {}).items()}


def source_of(name: str) -> str | None:
    """The Hub repository of a base; None for a random twin, which is made where it is used."""
    known = bases()
    if name not in known:
        raise UserError(f"there are no weights named '{name}'{did_you_mean(name, known)}", "worldsim models list")
    source = str(known[name]["source"])
    return source if "/" in source else None


def run(config: Config, context: RunContext) -> Result:
    repo = source_of(config.name)
    if repo is None:
        return Result(summary=f"{config.name} is a random twin made where it is used; there is nothing to fetch")
    folder = download(repo, config.revision, "model")
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return Result(
        metrics={"repo": repo, "folder": str(folder), "bytes": size},
        summary=f"{repo} ({size / 2**30:.1f} GiB) is in {folder}",
        next=["worldsim", "finetune-wan", "--model", config.name],
    )


def plan(config: Config, seed: int = 0) -> dict[str, Any]:
    return {"repo": source_of(config.name), **bases()[config.name]}
