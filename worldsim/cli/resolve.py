"""From what was typed to a job: recipe, flags, ``--set``, and the defaults that the house derives."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from worldsim.cli.shared import Shared
from worldsim.core import runs
from worldsim.core.config import assign, build, load_recipe, parse_overrides, to_values
from worldsim.core.errors import UserError, again
from worldsim.launch.job import Job, Launch


def resolve(name: str, flags: dict[str, Any], shared: Shared) -> Job:
    """The job that was asked for; a wrong key fails here, before anything is rented or read."""
    module = importlib.import_module(f"worldsim.commands.{name.replace('-', '_')}")
    recipe, values = load_recipe(name, shared.config)
    for key, value in flags.items():
        if value is not None:
            assign(values, key, value)
    for key, value in parse_overrides(shared.set).items():
        assign(values, key, value)
    if "data" in values and values["data"] is None and not values.get("predictions"):
        values["data"] = only_dataset(name)
    config = build(module.Config, values)
    default_out = getattr(module, "default_out", None)
    out = shared.out or (default_out(config) if default_out else f"runs/{name}/{recipe}")
    launch = Launch.parse(
        remote=shared.remote,
        gpu=shared.gpu,
        timeout=shared.timeout,
        detach=shared.detach,
        volume=shared.volume,
        nproc=shared.nproc,
        yes=shared.yes,
    )
    return Job(
        command=name,
        config=to_values(config),
        out=str(out),
        seed=shared.seed,
        device=shared.device,
        recipe=recipe,
        launch=launch,
    )


def refusal(job: Job) -> str | None:
    """Why a real run would refuse (the machine, its output folder), for a dry run to say; None when it would not."""
    module = importlib.import_module(f"worldsim.commands.{job.command.replace('-', '_')}")
    if job.launch.remote and hasattr(module, "LOCAL"):
        return module.LOCAL
    try:
        runs.check(Path(job.out), job.command, build(module.Config, job.config), job.seed)
    except UserError as error:
        return error.sentence
    return None


def ask(job: Job) -> None:
    """What a command wants to be sure of before it begins; ``--yes`` answers.

    A module with ``LOCAL`` (a sentence) does not run elsewhere; one with ``question(config)`` may have something to ask.

    Raises:
        UserError: the answer was no, or there is nobody to ask.
    """
    module = importlib.import_module(f"worldsim.commands.{job.command.replace('-', '_')}")
    if job.launch.remote and hasattr(module, "LOCAL"):
        raise UserError(module.LOCAL)
    question = module.question(build(module.Config, job.config)) if hasattr(module, "question") else None
    if question is None or job.launch.yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{question}; say that you mean it with --yes", again(yes=True))
    print(f"{question}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was done")


def only_dataset(name: str) -> str:
    """The one dataset under ``data/``, when there is exactly one."""
    from worldsim.data.card import CARD

    found = sorted(str(card.parent) for card in Path("data").glob(f"*/{CARD}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"there are several datasets: {', '.join(found)}; name one", again(data=found[0]))
    raise UserError("no dataset was named and there is none under data/", "worldsim convert --hf-dataset REPO")
