"""Reading npz episodes. Layout and meaning: ``oxe_npz.py``."""

from __future__ import annotations

import json
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.types import BLOCK_FRAMES, ActionSpec, CameraInfo, DatasetCard, Episode, FrameStream
from worldsim.data.card import CardFile, read_card
from worldsim.formats._oxe_tables import DEFAULT_FPS, FPS

PATTERN = "[!.]*_eps_[0-9]*.npz"
BROKEN = (OSError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, tokenize.TokenError)
"""What numpy and zipfile raise for a file that is missing, truncated, damaged, or no npz."""


def find_folders(path: Path) -> list[Path]:
    """The folders that hold episodes: ``path`` itself, else those right below it."""
    if not path.is_dir():
        return []
    if any(path.glob(PATTERN)):
        return [path]
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and any(folder.glob(PATTERN)))


@dataclass(frozen=True)
class Head:
    """What an archive says of itself without its frames being unpacked."""

    image_key: str
    frames: tuple[int, ...]
    action_dim: int | None
    record: dict[str, Any]


class OxeNpzSource:
    """An EpisodeSource over a folder of npz files; only the arrays' headers are read on opening."""

    def __init__(self, path: Path, *, fps: float | None = None) -> None:
        folders = find_folders(path)
        if len(folders) != 1:
            found = ", ".join(folder.name for folder in folders) or "none"
            example = folders[0] if folders else f"{path}/NAME"
            raise UserError(
                f"{path} must hold one folder of *_eps_*.npz files; there are: {found}", ["worldsim", "doctor", example]
            )
        self.folder = folders[0]
        self.files = sorted(self.folder.glob(PATTERN), key=lambda p: (p.stem.rpartition("_")[2], p.stem))
        saved = read_card(path) or read_card(self.folder.parent)
        self.saved = saved if saved and saved.card.format == "oxe-npz" else CardFile(_nameless(self.folder.name))
        self.card = self._describe(fps)

    def __len__(self) -> int:
        return len(self.files)

    def ids(self) -> list[str]:
        return [file.stem for file in self.files]

    def close(self) -> None:
        pass

    def _describe(self, fps: float | None) -> DatasetCard:
        saved, notes = self.saved.card, []
        heads = [head for file in self.files if (head := _head(file)) is not None]
        if not heads:
            raise UserError(f"{self.files[0]} and the other {len(self.files) - 1} files of {self.folder} hold no frames")
        fps = fps or saved.fps or next((head.record["fps"] for head in heads if "fps" in head.record), None)
        if fps is None:
            fps = FPS.get(self.folder.name, DEFAULT_FPS)
            known = "its published rate" if self.folder.name in FPS else "a guess (--fps overrides)"
            notes.append(f"{self.folder.name}: npz files do not say their fps; {fps:g} is {known}")
        self.fps = float(fps)
        self.key = Counter(head.image_key for head in heads).most_common(1)[0][0]
        self.camera = saved.camera_names[0] if saved.cameras else self.key
        size = Counter(head.frames[1:3] for head in heads).most_common(1)[0][0]
        dim = Counter(head.action_dim for head in heads).most_common(1)[0][0]
        actions = saved.actions if saved.actions and saved.actions.dim == dim else None
        if actions is None and dim is not None:
            actions = ActionSpec.unknown(dim, self.fps)
        return DatasetCard(
            name=saved.name,
            format="oxe-npz",
            fps=self.fps,
            cameras=(CameraInfo(self.camera, size[0], size[1]),),
            actions=actions,
            splits=saved.splits or (None if saved.cameras else self._own_split()),
            robot=saved.robot,
            notes=[*saved.notes, *notes],
        )

    def _own_split(self) -> dict[str, list[str]] | None:
        """The split that the file names of other people's folders carry, where it is one."""
        parts: dict[str, list[str]] = {}
        for name in self.ids():
            parts.setdefault(name.rpartition("_eps_")[0], []).append(name)
        return parts if len(parts) > 1 else None

    def episode(self, index: int) -> Episode:
        file = self.files[index]
        try:
            head = _read_head(file)
            record = {**head.record, **self.saved.episodes.get(file.stem, {})}
            actions = _read_actions(file)
        except BROKEN as error:
            raise BadEpisode(file.stem, f"{file} cannot be read: {error}") from error
        if actions is not None and "num_actions" in record:
            actions = actions[: record["num_actions"]]
        stream = FrameStream(head.frames[0], head.frames[1], head.frames[2], lambda: _blocks(file, head.image_key))
        return Episode(
            id=file.stem,
            index=index,
            source=str(file),
            fps=record.get("fps", self.fps),
            frames={self.camera if head.image_key == self.key else head.image_key: stream},
            actions=actions,
            instruction=record.get("instruction"),
            success=record.get("success"),
            split=record.get("split"),
            provenance={"format": "oxe-npz", "original_id": record.get("original_id", file.stem)},
        )


def _nameless(name: str) -> DatasetCard:
    return DatasetCard(name=name, format="oxe-npz", fps=0.0, cameras=())


def _head(file: Path) -> Head | None:
    """None for a broken file: ``episode`` says what is wrong with it when it is asked for."""
    try:
        return _read_head(file)
    except BROKEN:
        return None


def _read_head(file: Path) -> Head:
    with zipfile.ZipFile(file) as archive:
        shapes = {}
        for name in archive.namelist():
            with archive.open(name) as member:
                shapes[name.removesuffix(".npy")] = _array_header(member)
        comment = archive.comment
    images = [key for key, (shape, dtype) in shapes.items() if dtype == np.uint8 and len(shape) == 4 and shape[3] == 3]
    if len(images) != 1:
        raise ValueError(f"it holds {len(images)} arrays of uint8 frames (T,H,W,3), not one")
    action = shapes.get("action", ((), None))[0]
    record = json.loads(comment) if comment.startswith(b"{") else {}
    return Head(images[0], shapes[images[0]][0], action[1] if len(action) == 2 else None, record)


def _array_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(member)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(member)
    if fortran and len(shape) > 1:
        raise ValueError("an array in it is stored in Fortran order")
    return shape, dtype


def _read_actions(file: Path) -> np.ndarray | None:
    with np.load(file, allow_pickle=False) as arrays:
        return arrays.get("action")


def _blocks(file: Path, key: str) -> Iterator[np.ndarray]:
    """Frames unpacked as they are read, uint8 ``[n, H, W, 3]``."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{key}.npy") as member:
            shape, _ = _array_header(member)
            for at in range(0, shape[0], BLOCK_FRAMES):
                count = min(BLOCK_FRAMES, shape[0] - at)
                data = member.read(count * int(np.prod(shape[1:])))
                yield np.frombuffer(data, np.uint8).reshape(count, *shape[1:])
            member.read(1)  # the end of the member is where its checksum is compared
    except BROKEN as error:
        raise BadEpisode(file.stem, f"{file} cannot be read: {error}") from error
