"""Where the files of an RLDS data set are: version folders, splits, shards, and the position of every episode."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldsim.core.errors import UserError, again
from worldsim.core.files import read_json
from worldsim.formats._tfrecord import Shard, scan

FEATURES = "features.json"
INFO = "dataset_info.json"
SHARD_NAME = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<index>\d{5})-of-(?P<count>\d{5})")
# source: tensorflow.org/datasets/external_tfrecord (file names), core/proto/dataset_info.proto (dataset_info.json)


@dataclass(frozen=True)
class Place:
    """One episode: record ``record`` of ``shard``; -1 stands for the tail of a damaged shard."""

    id: str
    split: str
    shard: Shard
    record: int


@dataclass(frozen=True)
class Layout:
    """A data set's folder, name and version, its episodes in order, and what is odd about its files."""

    folder: Path
    name: str
    version: str
    places: list[Place]
    notes: list[str]

    @property
    def splits(self) -> dict[str, list[str]]:
        parts: dict[str, list[str]] = {}
        for place in self.places:
            parts.setdefault(place.split, []).append(place.id)
        return parts


def find_folders(path: Path) -> list[Path]:
    """Folders with features.json and TFRecord shards: ``path`` itself, ``path/VERSION`` or ``path/NAME/VERSION``."""
    if not path.is_dir():
        return []
    for pattern in (FEATURES, f"*/{FEATURES}", f"*/[0-9]*.[0-9]*.[0-9]*/{FEATURES}"):
        found = sorted(file.parent for file in path.glob(pattern) if any(file.parent.glob("*.tfrecord-*")))
        if found:
            return found
    return []


def locate(path: Path) -> Path:
    """The one data set below ``path``; of several versions of it the newest."""
    found = find_folders(path)
    if not found:
        raise UserError(f"{path} holds no RLDS data set: no folder in it has {FEATURES} and *.tfrecord-* files")
    if len({folder.parent for folder in found}) > 1:
        listed = ", ".join(str(folder.relative_to(path)) for folder in found)
        raise UserError(f"{path} holds several data sets: {listed}", again(source=found[0], from_format="rlds"))
    return max(found, key=lambda folder: [int(number) for number in re.findall(r"\d+", folder.name)])


def read_layout(path: Path) -> Layout:
    """Find every episode; reads record headers only (12 bytes each).

    Raises:
        UserError: there is no data set, or it is not stored as TFRecord.
    """
    folder = locate(path)
    info: dict[str, Any] = read_json(folder / INFO) if (folder / INFO).exists() else {}
    kind = str(info.get("fileFormat", "tfrecord")).lower()
    if kind != "tfrecord":
        raise UserError(f"{folder / INFO} says the records are stored as '{kind}'; only tfrecord is read")
    declared = {
        split["name"]: [int(n) for n in split.get("shardLengths", [])]
        for split in info.get("splits", [])
        if "name" in split
    }
    files = _shard_files(folder)
    order = [*declared, *sorted(files.keys() - declared.keys())]
    places: list[Place] = []
    notes = [] if info else [f"{folder / INFO} is missing; splits are taken from the file names"]
    for split in order:
        if split not in files:
            notes.append(f"{INFO} declares the split '{split}' but none of its files is there")
            continue
        places += _places(split, files[split], declared.get(split, []), notes)
    version = str(info.get("version") or folder.name)
    return Layout(folder, str(info.get("name") or _name(files) or folder.parent.name), version, places, notes)


@dataclass(frozen=True)
class _File:
    path: Path
    name: str
    index: int
    count: int


def _shard_files(folder: Path) -> dict[str, list[_File]]:
    """Split -> its shards, in order."""
    files: dict[str, list[_File]] = {}
    for path in sorted(folder.glob("*.tfrecord-*")):
        match = SHARD_NAME.fullmatch(path.name)
        if match:
            file = _File(path, match["name"], int(match["index"]), int(match["count"]))
            files.setdefault(match["split"], []).append(file)
    return files


def _name(files: dict[str, list[_File]]) -> str | None:
    return next((shards[0].name for shards in files.values()), None)


def _places(split: str, files: list[_File], declared: list[int], notes: list[str]) -> list[Place]:
    """The episodes of a split. Numbers count the shards that are absent, so that they never change meaning."""
    if len(files) < files[0].count:
        notes.append(f"split '{split}': {len(files)} of {files[0].count} shards are there")
    places: list[Place] = []
    for file in files:
        shard = scan(file.path)
        first = sum(declared[: file.index]) if len(declared) == file.count else len(places)
        if len(declared) == file.count and len(shard) != declared[file.index]:
            notes.append(f"{INFO} declares {declared[file.index]} episodes in {file.path.name}; {len(shard)} are readable")
        places += [Place(f"{split}_{first + k:08d}", split, shard, k) for k in range(len(shard))]
        if shard.damage:
            places.append(Place(f"{split}_{first + len(shard):08d}", split, shard, -1))
    return places
