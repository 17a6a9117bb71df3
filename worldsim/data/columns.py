"""Columns: what was derived from a dataset, beside the data, memory-mapped and keyed by what made it.

On disk: ``<root>/columns/<kind>/<plugin>@<fingerprint>/`` with one ``.npy`` per key and ``manifest.json``. A key is an
episode id (index ``frame`` or ``window``) or a prompt's digest (index ``prompt``). The fingerprint covers the plugin, its
parameters and the fingerprints of everything that was read, so a stale column is never found by accident. No path inside
a column is absolute: a dataset folder can be moved with its columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

import numpy as np

from worldsim.core.config import fingerprint
from worldsim.core.console import progress
from worldsim.core.errors import BadEpisode, UserError, again, did_you_mean
from worldsim.core.files import folder_digest, read_json, replacing, write_json
from worldsim.core.runs import COLUMNS, derived

FOLDER = COLUMNS
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ColumnSpec:
    """What a column holds and what made it.

    Attributes:
        kind: ``actions``, ``latents``, ``text``, ``tokens``, …: what a reader asks for.
        plugin: the registered name of what made it.
        index: what one entry belongs to: a *frame* ``[T, …]`` per episode, a *window* ``[windows, …]`` per episode (a causal
            video VAE gives other latents for a slice of a longer encode), or a *prompt* (one file per text).
        params: JSON-able parameters of the plugin; part of the fingerprint.
        inputs: name -> fingerprint of what was read (``dataset``, ``checkpoint``); part of the fingerprint.
    """

    kind: str
    plugin: str
    index: Literal["frame", "window", "prompt"]
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return fingerprint({**asdict(self)})

    @property
    def maker(self) -> str:
        """``plugin@<digest>`` of what made it alone, not of what was read: the same on every dataset."""
        return f"{self.plugin}@{fingerprint({**asdict(self), 'inputs': {}})}"

    @property
    def path(self) -> Path:
        """Relative to the root: ``columns/<kind>/<plugin>@<fingerprint>``."""
        return Path(FOLDER, self.kind, f"{self.plugin}@{self.fingerprint}")


class Column:
    """A column opened for reading. Arrays are memory-mapped on first use and kept open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data = read_json(folder / MANIFEST)
        try:
            self.spec = ColumnSpec(**data["spec"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / MANIFEST} is not a column manifest of this program: {error}") from error
        self._open: dict[str, np.ndarray] = {}

    def __contains__(self, key: str) -> bool:
        return _file(self.folder, key).exists()

    def keys(self) -> list[str]:
        """Keys that are finished, sorted."""
        return sorted(unquote(p.stem) for p in self.folder.glob("*.npy") if not p.name.startswith("."))

    def load(self, key: str) -> np.ndarray:
        """The array of ``key``, memory-mapped, read-only."""
        if key not in self._open:
            self._open[key] = _map(_file(self.folder, key))
        return self._open[key]


def load(folder: Path, key: str) -> np.ndarray:
    """One array of the column in ``folder``, memory-mapped, read-only."""
    return _map(_file(folder, key))


def dataset_fingerprint(root: Path) -> str:
    """12 hex digits of a dataset's own files: names, sizes and samples of each, see :func:`core.files.folder_digest`.

    What this program writes into a dataset folder later (columns, run records, inference results, training caches) does
    not count, so deriving something does not make everything else stale.
    """
    return folder_digest(root, skip=derived)


def prompt_key(text: str) -> str:
    """The key of a prompt in a prompt-indexed column."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ensure[K: str](
    root: Path,
    spec: ColumnSpec,
    keys: Iterable[K],
    encode: Callable[[K], np.ndarray],
    *,
    rank: int = 0,
    world_size: int = 1,
    title: str | None = None,
    reject: Callable[[BadEpisode], None] | None = None,
) -> Column:
    """Make the column whole: every missing key of this rank's share is encoded and written, atomically.

    Finished files are kept, so a killed run continues where it stopped, at any number of processes. With several processes
    the caller waits for all of them before it reads. ``encode`` gives one array; it is not called when nothing is missing.

    Args:
        reject: told of each :class:`BadEpisode` that ``encode`` raises, whose key then stays missing; without it they end
            the run.
    """
    folder = root / spec.path
    mine = sorted(set(keys))[rank::world_size]
    todo = [key for key in mine if not _file(folder, key).exists()]
    _begin(folder, spec, rank)
    if todo:
        with progress(title or f"{spec.kind}/{spec.plugin}", len(mine), done=len(mine) - len(todo)) as bar:
            for key in todo:
                try:
                    _write(_file(folder, key), encode(key))
                except BadEpisode as bad:
                    if reject is None:
                        raise
                    reject(bad)
                bar.advance()
    return Column(folder)


def missing(root: Path, spec: ColumnSpec, keys: Iterable[str]) -> list[str]:
    """Keys that :func:`ensure` would still have to encode; lets a caller skip loading an encoder."""
    return [key for key in keys if not _file(root / spec.path, key).exists()]


def find(
    root: Path,
    kind: str,
    plugin: str,
    inputs: Mapping[str, str] | None = None,
    command: str | Sequence[object] | None = None,
    key: str | None = None,
) -> Column:
    """The one column of ``kind`` made by ``plugin`` (``raw``), or one of several: ``raw@<fingerprint>``, or the same by
    what made it, on whatever data, :attr:`ColumnSpec.maker`.

    Args:
        inputs: fingerprints as they are now; a column made from others is stale and refused.
        command: what to type to build it (again); part of the error.
        key: the user's config key that names the column, for an error that suggests one of several.
    """
    name, _, wanted = plugin.partition("@")
    made = [Column(path.parent) for path in sorted((root / FOLDER / kind).glob(f"{name}@*/{MANIFEST}"))]
    columns = [c for c in made if not wanted or plugin in (c.folder.name, c.spec.maker)]
    if not columns:
        others = sorted({p.name.partition("@")[0] for p in (root / FOLDER / kind).glob("*@*")})
        other = f"; its {len(made)} by {name} were made with other settings (policy, mode, cameras, rate)"
        raise UserError(f"{root} has no column {kind}/{plugin}{other if made else did_you_mean(name, others)}", command)
    fresh = [c for c in columns if _current(c.spec, inputs or {})]
    if not fresh:
        raise UserError(f"the column {columns[-1].folder} is stale: the data that it was made from has changed", command)
    if len(fresh) > 1:
        known = ", ".join(c.folder.name for c in fresh)
        latest = max(fresh, key=lambda c: (c.folder / MANIFEST).stat().st_mtime).folder.name
        pick = again({key: latest}) if key else None
        raise UserError(f"{root} has several columns {kind}/{name}; name one of: {known}", pick)
    return fresh[0]


def _current(spec: ColumnSpec, inputs: Mapping[str, str]) -> bool:
    return all(spec.inputs.get(name) == digest for name, digest in inputs.items())


def _begin(folder: Path, spec: ColumnSpec, rank: int) -> None:
    """Write the manifest. A killed run's temporary file needs no sweep: its key is encoded again under the same name."""
    path = folder / MANIFEST
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f"{MANIFEST}.{rank}")  # several processes may arrive at once; each renames the same bytes
        write_json(own, {"spec": asdict(spec)})
        own.replace(path)


def _file(folder: Path, key: str) -> Path:
    return folder / f"{quote(key, safe='')}.npy"


def _write(path: Path, array: np.ndarray) -> None:
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
    except OSError as error:
        hint = again(columns="columns")
        raise UserError(f"cannot write the column file {path}: {error.strerror or error}", hint) from error


def _map(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:  # an array without entries cannot be mapped
            np.lib.format.read_magic(file)
            shape, _, _ = np.lib.format.read_array_header_1_0(file)
        return np.load(path, mmap_mode=None if 0 in shape else "r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the column is not finished") from None
    except ValueError as error:
        raise UserError(f"{path} is no array file: {error}", ["rm", path]) from error
