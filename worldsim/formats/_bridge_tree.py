"""The files of a Bridge / IRASim tree: where annotations, videos and sidecars lie, which split they belong to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worldsim.core.errors import UserError, again
from worldsim.core.files import TEMPORARY
from worldsim.formats._sidecar import FOLDER

ANNOTATIONS = ("annotation", "annotations")
"""IRASim's archives say ``annotation``; the tree printed in Cosmos-Predict2's documentation says ``annotations``."""
SPLITS = ("train", "val", "test")
DEFAULT_SPLIT = "train"
"""Where episodes of a data set without a split are put; the card then says that there is no split."""
ARCHIVE = "opensource_robotdata"
"""IRASim's archives unpack to ``opensource_robotdata/bridge``; Cosmos' documentation moves that below ``datasets/bridge``."""


@dataclass(frozen=True)
class Place:
    """One episode: its unique id, its split (None in a flat tree), its annotation file."""

    id: str
    split: str | None
    annotation: Path


def find_roots(path: Path) -> list[Path]:
    """Folders that hold ``annotation/``, to which ``video_path`` is relative: ``path``, or those one archive level below."""
    if not path.is_dir():
        return []
    for candidates in ([path], path.glob("*"), path.glob(f"{ARCHIVE}/*"), path.glob(f"*/{ARCHIVE}/*")):
        found = [folder for folder in candidates if any(any(_files(folder / name)) for name in ANNOTATIONS)]
        if found:
            return sorted(found)
    return []


def root(path: Path) -> Path:
    found = find_roots(path)
    if not found:
        raise UserError(f"{path} holds no Bridge tree: there is no annotation/SPLIT/EPISODE.json in it")
    if len(found) > 1:
        listed = ", ".join(str(folder.relative_to(path)) for folder in found)
        raise UserError(f"{path} holds several Bridge trees: {listed}", again(source=found[0], from_format="bridge"))
    return found[0]


def places(folder: Path) -> list[Place]:
    """Every episode, train before val before test, numbers in numeric order.

    An episode is called what its file is called; where two splits share a name, all carry their split's name in front.
    """
    files = [file for name in ANNOTATIONS for file in _files(folder / name)]
    keyed = [(None if file.parent.name in ANNOTATIONS else file.parent.name, file) for file in files]
    keyed.sort(key=lambda pair: (_rank(pair[0]), _natural(pair[1].stem)))
    clash = max(Counter(file.stem for _, file in keyed).values(), default=0) > 1
    return [Place(f"{split}_{file.stem}" if clash and split else file.stem, split, file) for split, file in keyed]


def sidecar(folder: Path, split: str, name: str) -> Path:
    return folder / FOLDER / split / f"{name}.safetensors"


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        for pattern in ("*.json", "*/*.json"):
            yield from (file for file in folder.glob(pattern) if not file.name.startswith(TEMPORARY))


def _rank(split: str | None) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split or "")


def _natural(name: str) -> tuple:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))
