"""Remote runs started from this machine, one JSON each under ``~/.worldsim/runs`` (``WORLDSIM_HOME`` moves it)."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worldsim.core.config import fingerprint
from worldsim.core.errors import UserError, did_you_mean
from worldsim.core.files import read_json, write_json
from worldsim.core.task import Task


def home() -> Path:
    """What this program remembers about its user: recorded runs and ``hardware.yaml``."""
    return Path(os.environ.get("WORLDSIM_HOME") or Path.home() / ".worldsim")


def run_id(task: Task) -> str:
    """The same task has the same id, so that submitting it again continues its folder on the volume."""
    identity = {key: value for key, value in task.to_values().items() if key != "device"}
    return f"{task.command}-{task.recipe}-{fingerprint(identity)[:8]}"


@dataclass(frozen=True)
class Record:
    """One submission.

    Attributes:
        run: the run's id; its folder on the volume is ``runs/<run>``.
        call: the backend's name of this submission (Modal: a function call's id).
        command, recipe: what runs.
        out: the local folder that the run's files are fetched to.
        volume: the volume that holds data and runs.
        gpu: rented hardware as text, or None for a CPU container.
        timeout: seconds the run may take in all.
        usd_per_hour: what the hardware costs, as known here.
        started: seconds since the epoch at submission.
        status: ``running`` until something final is known.
        url: a page to look at, when the backend has one.
        task: the task as sent.
    """

    run: str
    call: str
    command: str
    recipe: str
    out: str
    volume: str
    gpu: str | None
    timeout: int
    usd_per_hour: float | None
    started: float
    status: str
    url: str | None
    task: dict[str, Any]

    @property
    def folder(self) -> str:
        return f"runs/{self.run}"

    @property
    def age(self) -> float:
        """Seconds since submission."""
        return time.time() - self.started

    def save(self) -> None:
        write_json(home() / "runs" / f"{self.run}.json", asdict(self))


def load(run: str) -> Record:
    """The record of a run, by its id or an unambiguous beginning of it."""
    known = {record.run: record for record in load_all()}
    matches = [record for name, record in known.items() if name.startswith(run)]
    if run in known:
        return known[run]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"'{run}' fits several runs: {', '.join(r.run for r in matches)}", "worldsim runs list")
    raise UserError(f"no remote run '{run}' was started from this machine{did_you_mean(run, known)}", "worldsim runs list")


def find(run: str) -> Record | None:
    path = home() / "runs" / f"{run}.json"
    return _read(path) if path.exists() else None


def load_all() -> list[Record]:
    """Every recorded run, newest first."""
    records = [_read(path) for path in (home() / "runs").glob("*.json")]
    return sorted(records, key=lambda record: -record.started)


def _read(path: Path) -> Record:
    try:
        return Record(**read_json(path))
    except TypeError as error:
        raise UserError(f"{path} is not a run's record: {error}", ["rm", path]) from error
