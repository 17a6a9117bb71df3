"""``worldsim runs``: remote runs started from this machine, listed, followed, fetched and stopped."""

from __future__ import annotations

import filecmp
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldsim.core.console import say, track
from worldsim.core.errors import RemoteError, UserError, again
from worldsim.core.files import TEMPORARY
from worldsim.launch.backend import Backend, connect
from worldsim.launch.records import Record, load, load_all

STATE = "state"
"""What only resume needs; it stays on the volume."""


def list_runs(backend: Backend | None = None) -> list[dict[str, Any]]:
    """One row per run, newest first. Without a token the last known status is shown, with a question mark."""
    rows, reachable = [], True
    for record in load_all():
        doubt = ""
        if record.status == "running":
            try:
                backend = (backend or connect()) if reachable else backend
                record = refresh(record, backend) if reachable and backend else record
            except RemoteError:
                reachable = False
            doubt = "" if reachable else "?"
        rows.append(_row(record, doubt))
    return rows


def _row(record: Record, doubt: str) -> dict[str, Any]:
    return {
        "run": record.run,
        "status": record.status + doubt,
        "command": record.command,
        "gpu": record.gpu or "cpu",
        "hours_ago": round(record.age / 3600, 2),
        "out": record.out,
        "url": record.url,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    if not rows:
        return "no remote run was started from this machine"
    columns = ("run", "status", "gpu", "hours_ago", "out")
    cells = [list(columns), *([str(row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in cells)


def refresh(record: Record, backend: Backend) -> Record:
    """The record with the status as it is now."""
    if record.status != "running":
        return record
    answer = backend.status(record)
    if answer is None:
        return record
    record = replace(record, status=answer["status"])
    record.save()
    return record


def logs(run: str, *, follow: bool = False, backend: Backend | None = None) -> None:
    """Print what a run has said, on stdout. Ctrl-C stops the printing, not the run."""
    record = load(run)
    for text in (backend or connect()).logs(record, follow):
        sys.stdout.write(text)
    sys.stdout.flush()


def pull(run: str, out: str | None = None, *, backend: Backend | None = None) -> str:
    """Fetch a run's folder, without its ``state/``, and return where it lies. Files already here are replaced.

    Raises:
        UserError: the folder holds another run.
    """
    record = load(run)
    target = Path(out or record.out)
    files = [(name, write) for name, write in (backend or connect()).fetch(record.volume, record.folder) if _wanted(name)]
    if not files:
        raise RemoteError(f"run {record.run} has left no files yet", f"worldsim runs logs {record.run}")
    _refuse_foreign(target, dict(files))
    for name, write in track(sorted(files, key=lambda file: file[0]), f"fetch {record.run}", unit="files"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        write(target / name)
    say(f"{record.run} -> {target}")
    return str(target)


def _wanted(name: str) -> bool:
    parts = Path(name).parts
    return parts[0] != STATE and not any(part.startswith(TEMPORARY) for part in parts)


def _refuse_foreign(target: Path, files: dict[str, Any]) -> None:
    """A folder may be overwritten only by the run that it holds: same ``config.yaml``."""
    if not target.exists() or not any(target.iterdir()):
        return
    here, fetched = target / "config.yaml", target / f"{TEMPORARY}config.yaml.fetched"
    if here.exists() and "config.yaml" in files:
        files["config.yaml"](fetched)
        same = filecmp.cmp(here, fetched, shallow=False)
        fetched.unlink()
        if same:
            return
    raise UserError(f"{target} holds something else; choose another folder", again(out=f"{target}-remote"))


def cancel(run: str, *, backend: Backend | None = None) -> str:
    """Stop a run for good; what it has written stays on the volume."""
    backend = backend or connect()
    record = refresh(load(run), backend)
    if record.status != "running":
        return f"{record.run} has already ended: {record.status}"
    backend.cancel(record)
    replace(record, status="cancelled").save()
    return f"{record.run} is cancelled; the same command with --remote continues it"
