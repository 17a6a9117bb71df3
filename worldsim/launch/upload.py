"""From a local task to one that a container can run: local inputs become paths on the volume.

``vol:PATH`` names a path on the volume and is used in place. A local input is uploaded once, under the digest of its
content. Any other path of this machine is refused here, before anything is rented.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from worldsim.core.config import fingerprint
from worldsim.core.errors import UserError, again
from worldsim.core.files import TEMPORARY, file_digest, folder_digest, read_json
from worldsim.core.task import Task
from worldsim.launch.records import load_all
from worldsim.world_models._worldeval_files import beside, find, note_of

VOL = "vol:"
COLUMNS, ACTIONS = "columns", "actions"
DATA_KEYS = {"data", "source", "predictions", COLUMNS}
MODEL_KEYS = {
    "model",
    "checkpoint",
    "policy",
    "baseline",
    "tokenizer",
    "init",
    "ranges",
    "runs",
    "success",
    "world",
    "truth",
    "vision_model",
}
INPUT_KEYS = DATA_KEYS | MODEL_KEYS
"""Config keys (their last part) whose value may be a local file or folder to read. ``actions`` may name a file besides."""
NOT_SENT = (COLUMNS, "state")
"""Parts of a dataset or run folder that stay here: derived columns are made again there, ``state/`` serves only resume.

Columns that the run reads and cannot make go along: those of the key ``columns``, and a dataset's action columns when the
config, or the model that it names, asks for one of them.
"""


@dataclass(frozen=True)
class Input:
    """A local file or folder that a config key names.

    ``remote`` is its path on the volume, ``data/<digest>/<name>``; ``size`` is in bytes; ``keep`` as in :func:`files_of`.
    """

    key: str
    path: Path
    remote: str
    size: int
    keep: str | None = None


def files_of(path: Path, keep: str | None = None) -> list[tuple[Path, str]]:
    """What is sent of an input: (file, path relative to the input), sorted; a single file is ``(path, "")``.

    Args:
        keep: a part that is sent although it lies in one of ``NOT_SENT``: ``columns``, ``columns/actions``.
    """
    if path.is_file():
        return [(path, "")]
    pairs = [(p, p.relative_to(path)) for p in sorted(path.rglob("*")) if p.is_file()]
    return [(p, relative.as_posix()) for p, relative in pairs if not _skipped(relative, keep)]


def _skipped(relative: Path, keep: str | None) -> bool:
    if any(part.startswith(TEMPORARY) for part in relative.parts):
        return True
    return relative.parts[0] in NOT_SENT and (keep is None or not relative.is_relative_to(keep))


def digest(path: Path, keep: str | None = None) -> str:
    """12 hex digits of everything that would be sent."""
    if path.is_file():
        return file_digest(path)[:12]
    return folder_digest(path, quick=False, skip=lambda relative: _skipped(relative, keep))


def remote_task(task: Task, *, hashed: bool = True) -> tuple[Task, list[Input]]:
    """The task with its local inputs replaced by ``vol:`` paths, and those inputs.

    Args:
        hashed: False leaves the digest out (a dry run need not read every byte).

    Raises:
        UserError: a value names a path of this machine that no container can see.
    """
    inputs: list[Input] = []
    outs = {record.out: record.folder for record in reversed(load_all())}

    def place(key: str, value: str) -> str:
        leaf = [part for part in key.split(".") if not part.isdigit()][-1]
        path = Path(value).expanduser()
        if value.startswith(VOL):
            return VOL + _inside(key, value.removeprefix(VOL))
        if (leaf in INPUT_KEYS and path.exists()) or _is_action_file(leaf, value, path):
            keep, note = _kept(leaf, path, task.config), _note(leaf, path)
            folder = f"data/{_content(path, keep, note) if hashed else '<content hash>'}"
            for one in (path, note) if note else (path,):
                size = sum(file.stat().st_size for file, _ in files_of(one, keep))
                inputs.append(Input(key, one, f"{folder}/{one.resolve().name}", size, keep))
            return f"{VOL}{folder}/{path.resolve().name}"
        if leaf in INPUT_KEYS and value in outs:
            return VOL + outs[value]  # the output of an earlier remote run, still on the volume
        _refuse_local(key, value, path)
        return value

    return replace(task, config=map_strings(task.config, place)), inputs


def _note(leaf: str, path: Path) -> Path | None:
    """The file that says how another program's checkpoint was trained, and lies beside it."""
    return note_of(path) if leaf in MODEL_KEYS and find(path) == path else None


def _content(path: Path, keep: str | None, note: Path | None) -> str:
    """12 hex digits of an input and the note beside it."""
    own = digest(path, keep)
    return own if note is None else fingerprint([own, digest(note)])


def _is_action_file(leaf: str, value: str, path: Path) -> bool:
    """Whether ``actions`` names a file of actions, and is none of its words or the name of a column."""
    return leaf == ACTIONS and value not in ("raw", "dataset") and not value.startswith("policy:") and path.is_file()


def _kept(leaf: str, path: Path, config: dict[str, Any]) -> str | None:
    """The part of ``NOT_SENT`` that this input is read for."""
    if leaf == COLUMNS:
        return COLUMNS
    if leaf != "data" or config.get(COLUMNS):
        return None
    own = str(_action_column(config.get("model")) or "raw").partition("@")[0]  # a card names no folder but what made it
    for name in (config.get(ACTIONS), own):
        plugin, _, wanted = str(name or "raw").partition("@")
        named = plugin != "raw" or wanted  # plain raw rows are made again there
        if named and any((path / COLUMNS / ACTIONS).glob(f"{glob.escape(plugin)}@{glob.escape(wanted) or '*'}")):
            return f"{COLUMNS}/{ACTIONS}"
    return None


def _action_column(model: Any) -> str | None:
    """The action column that the model of a local run folder, or of another program's checkpoint, is driven by."""
    path = Path(str(model)).expanduser()
    card = path / "checkpoint" / "card.json"
    if card.is_file():
        return read_json(card).get("action_column")
    other = find(path)
    return beside(other).actions if other is not None and note_of(other) is not None else None


def _inside(key: str, path: str) -> str:
    parts = PurePosixPath(path.lstrip("/")).parts
    if not parts or ".." in parts:
        raise UserError(f"'{key}' = 'vol:{path}' does not name a path on the volume", again({key: "vol:data/NAME"}))
    return "/".join(parts)


def _refuse_local(key: str, value: str, path: Path) -> None:
    foreign = path.is_absolute() or value.startswith(("~", "./", "../", "file:"))
    if foreign or ("/" in value and path.exists()):
        raise UserError(
            f"'{key}' = '{value}' is a path on this machine, which a remote container cannot see; upload it, then name it "
            f"{key}=vol:data/{path.name}",
            ["modal", "volume", "put", "worldsim", value, f"/data/{path.name}"],
        )


def local_task(task: Task, root: Path) -> Task:
    """The inverse, inside the container: ``vol:`` paths and the run folder under ``root``, where the volume is mounted."""

    def place(key: str, value: str) -> str:
        return str(root / value.removeprefix(VOL)) if value.startswith(VOL) else value

    return replace(task, config=map_strings(task.config, place), out=str(root / task.out))


def map_strings(value: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    """``value`` with every string replaced by ``change(dotted key, string)``."""
    if isinstance(value, str):
        return change(key, value)
    if isinstance(value, dict):
        return {k: map_strings(v, change, f"{key}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(v, change, f"{key}.{i}") for i, v in enumerate(value)]
    return value


def describe(inputs: list[Input]) -> Iterator[dict[str, Any]]:
    for item in inputs:
        yield {"key": item.key, "path": str(item.path), "volume_path": item.remote, "bytes": item.size}
