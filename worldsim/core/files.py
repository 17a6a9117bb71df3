"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worldsim.core.errors import UserError

TEMPORARY = ".tmp-"
"""Prefix of names that no reader looks at; :func:`sweep` removes what a killed run left."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; renamed to ``path`` on success, removed on any exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    remove(temporary)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder; nothing when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the temporary names of a killed run, at any depth."""
    if folder.is_dir():
        for path in sorted(folder.rglob(f"{TEMPORARY}*")):
            remove(path)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def _plain(value: Any) -> Any:
    """numpy scalars and arrays, paths and sets as JSON."""
    for convert in ("tolist", "item"):
        if hasattr(value, convert):
            return getattr(value, convert)()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


BLOCK, SAMPLES = 65536, 16
"""What a quick digest reads of a file: all of it up to 1 MiB, else 16 evenly spaced blocks of 64 KiB."""


def folder_digest(folder: Path, *, quick: bool = True, skip: Callable[[Path], bool] | None = None) -> str:
    """12 hex digits that identify a folder's content.

    ``quick`` uses names, sizes and samples of each file: all of it up to 1 MiB, else 16 evenly spaced blocks of 64 KiB, the
    first and the last among them. Another file, another size, anything in a small file and a large file that was written
    anew are noticed; an edit in place between two blocks of a large file is not. Names are relative, so a folder can be
    moved. Measured for 2 GB on two busy CPU cores, nothing cached: 0.1 s as 20 files, 1.0 s as 200, 8.4 s as 2,000, which are
    read whole.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder)
        if any(part.startswith(TEMPORARY) for part in relative.parts) or (skip and skip(relative)):
            continue
        size = path.stat().st_size
        digest.update(f"{relative.as_posix()}\0{size}\0".encode())
        if not quick:
            digest.update(file_digest(path).encode())
            continue
        with path.open("rb") as file:
            for start, length in _samples(size):
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()[:12]


def _samples(size: int) -> list[tuple[int, int]]:
    """(start, length) of what a quick digest reads of a file of ``size`` bytes."""
    if size <= SAMPLES * BLOCK:
        return [(0, size)]
    return [(k * (size - BLOCK) // (SAMPLES - 1), BLOCK) for k in range(SAMPLES)]
