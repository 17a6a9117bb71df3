"""A run folder: ``config.yaml  result.json  provenance.json  metrics.jsonl  checkpoint/  state/``.

The same command on the same folder continues where it stopped, or says that it is done; a different config is refused.
"""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from worldsim import __version__
from worldsim.core.config import fingerprint, to_values, to_yaml
from worldsim.core.errors import UserError, again
from worldsim.core.files import TEMPORARY, file_digest, folder_digest, read_json, write_json, write_text

VOLATILE = ("config.yaml", "result.json", "provenance.json", "metrics.jsonl")
PROVENANCE = "provenance.json"
CHECKPOINT = "checkpoint"
COLUMNS = "columns"
SAMPLES = Path("train", "tensors.json")
"""What WorldEval's samples beside it were made of; see ``commands._finetune_samples``."""
SAMPLES_ENDING = ".tensors.pth"


@dataclass
class RunContext:
    """What a command's ``run(config, context)`` is given besides its config.

    Attributes:
        command: ``convert``, ``finetune-wan``, …
        out: the run folder; exists, with ``config.yaml`` in it.
        device: ``cpu``, ``cuda`` or ``mps``, resolved.
        seed: the run's seed.
        rank, world_size: 0 and 1 outside torchrun.
        inputs: what the command read, name -> path; recorded with fingerprints in ``provenance.json``.
        fingerprints: of those that :meth:`reads` has recorded.
        notes: remarks for the user; end in ``result.json``.
    """

    command: str
    out: Path
    device: str = "cpu"
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    inputs: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fingerprints: dict[str, str | None] = field(default_factory=dict)

    def reads(self, name: str, path: Path) -> None:
        """Record an input by its content as it is now, before anything is made of it.

        Raises:
            UserError: this folder holds results of another content, which what is made now would be mixed with.
        """
        self.inputs[name], self.fingerprints[name] = str(path), content_digest(path)
        file = self.out / PROVENANCE
        known = read_json(file) if file.exists() else {}
        if any(p.name not in VOLATILE and not p.name.startswith(TEMPORARY) for p in self.out.iterdir()):
            _refuse_changed(self.out, self.command, known.get("inputs", {}).get(name), self.fingerprints[name])
        if self.rank == 0:
            record = {"path": str(path), "fingerprint": self.fingerprints[name]}
            write_json(file, {**known, "inputs": {**known.get("inputs", {}), name: record}})

    def note(self, sentence: str) -> None:
        sentence = " ".join(sentence.split())
        if sentence not in self.notes:
            self.notes.append(sentence)


def claim(out: Path, command: str, config: Any, seed: int) -> dict[str, Any] | None:
    """Make ``out`` this run's folder. Returns the finished run's ``result.json`` when there is nothing left to do.

    Raises:
        UserError: the folder belongs to another command or config, or is not empty and no run folder; or it is done, and
            what it was made from has changed since.
    """
    check(out, command, config, seed)
    result = out / "result.json"
    if (out / "config.yaml").exists() and not _came_to_nothing(out) and result.exists():
        done = read_json(result)
        if done.get("status") == "done":
            require_same_inputs(out, command)
            return done
    try:
        write_text(out / "config.yaml", yaml.safe_dump({"command": command, "seed": seed}) + to_yaml(config))
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}", again(out=f"runs/{command}/mine")) from error
    return None


def require_same_inputs(out: Path, command: str) -> None:
    """
    Raises:
        UserError: something that the finished run in ``out`` was made from is there with another content.
    """
    file = out / PROVENANCE
    for record in (read_json(file).get("inputs", {}) if file.exists() else {}).values():
        if Path(record["path"]).exists():
            _refuse_changed(out, command, record, content_digest(Path(record["path"])))


def _refuse_changed(out: Path, command: str, record: dict[str, Any] | None, now: str | None) -> None:
    if record and record["fingerprint"] and record["fingerprint"] != now:
        raise UserError(
            f"{record['path']} has changed since {out} was made from it; choose another folder or delete it",
            again(out=f"{out}-2"),
        )


def derived(relative: Path) -> bool:
    """Whether a file of a dataset or run folder is something that this program adds to it later, by its relative path."""
    first, name = relative.parts[0], relative.name
    cache = relative == SAMPLES or name == "all_actions.pt" or name.endswith(SAMPLES_ENDING)
    return first in (COLUMNS, "inference", "state") or (first == "train" and cache) or (str(relative) in VOLATILE)


def content_digest(path: Path) -> str | None:
    """12 hex digits of what a command reads there: a dataset's own files, a run's ``checkpoint/``, or one file.

    What is derived later (columns, run records, inference results, caches) does not count, so deriving something does not
    make everything else stale. None where nothing is.
    """
    if path.is_dir():
        return folder_digest(path / CHECKPOINT if (path / CHECKPOINT).is_dir() else path, skip=derived)
    return file_digest(path)[:12] if path.is_file() else None


def check(out: Path, command: str, config: Any, seed: int) -> None:
    """What :func:`claim` refuses, without writing anything."""
    another = again(out=f"{out}-2")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file, not a folder", another)
    path = out / "config.yaml"
    if path.exists() and not _came_to_nothing(out):
        saved = yaml.safe_load(path.read_text(encoding="utf8")) or {}
        was = {"command": saved.pop("command", None), "seed": saved.pop("seed", None)}
        free = getattr(config, "NOT_IDENTITY", ())
        before = {**was, **_without(saved, free)}
        now = {"command": command, "seed": seed, **_without(to_values(config), free)}
        if before != now:
            changed = _difference(before, now)
            raise UserError(
                f"{out} holds a run with another config ({changed}); choose another folder or delete it", another
            )
    elif out.is_dir() and any(p.name not in (".gitkeep", *VOLATILE) for p in out.iterdir()):
        raise UserError(f"{out} is not empty and is no run folder; choose another folder", another)


def _came_to_nothing(out: Path) -> bool:
    """A run that failed before it made anything (a mistyped path, say) does not occupy its folder."""
    result = out / "result.json"
    if any(p.name not in VOLATILE for p in out.iterdir()):
        return False
    return result.exists() and read_json(result).get("status") == "failed"


def _without(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """``values`` less the keys, dotted or not, that may change between two runs of the same work (``NOT_IDENTITY``)."""
    out = {}
    for key, value in values.items():
        if key not in keys:
            below = tuple(k.removeprefix(f"{key}.") for k in keys if k.startswith(f"{key}."))
            out[key] = _without(value, below) if below and isinstance(value, dict) else value
    return out


def _difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    for key in new | old:
        a, b = old.get(key), new.get(key)
        if a != b:
            if isinstance(a, dict) and isinstance(b, dict):
                return _difference(a, b, f"{prefix}{key}.")
            return f"{prefix}{key}: {a!r} there, {b!r} here"
    return "another version of the program"


def write_result(context: RunContext, status: str, metrics: dict[str, Any], seconds: float, **more: Any) -> dict[str, Any]:
    result = {
        "status": status,
        "command": context.command,
        "out": str(context.out),
        "metrics": metrics,
        "notes": context.notes,
        "seconds": round(seconds, 3),
        **more,
    }
    write_json(context.out / "result.json", result)
    return result


def write_provenance(context: RunContext, config: Any) -> None:
    """Code version, lock hash, input fingerprints, seed: what is needed to say where a result came from."""
    root = Path(__file__).resolve().parents[2]
    lock = root / "requirements.lock"
    inputs = {}
    for name, text in context.inputs.items():
        known = context.fingerprints
        inputs[name] = {"path": text, "fingerprint": known[name] if name in known else content_digest(Path(text))}
    write_json(
        context.out / PROVENANCE,
        {
            "worldsim": __version__,
            "revision": revision(),
            "lock": file_digest(lock)[:12] if lock.exists() else None,
            "python": platform.python_version(),
            "machine": platform.platform(),
            "command": context.command,
            "config": fingerprint(config),
            "seed": context.seed,
            "device": context.device,
            "inputs": inputs,
        },
    )


def revision() -> str | None:
    """``git describe`` of this program's checkout; None outside one."""
    root = Path(__file__).resolve().parents[2]
    try:
        ask = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
