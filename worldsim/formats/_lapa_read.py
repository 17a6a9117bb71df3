"""Reading LAPA's fine-tuning rows: a foreign JSON array or jsonl, or a tree of our own. Layout: ``lapa.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from worldsim.core.errors import BadEpisode, UserError, again
from worldsim.core.files import read_json
from worldsim.core.types import ActionSpec, CameraInfo, DatasetCard, Episode, FrameStream
from worldsim.data.action_bins import LAPA_NAMES
from worldsim.data.card import CardFile, read_card
from worldsim.formats import _sidecar
from worldsim.formats._images import stored_frames
from worldsim.formats._lapa_rows import instruction_of

DEFAULT_FPS = 10.0
CAMERA = "image"
STATE_NAMES = LAPA_NAMES
UNITS = ("m", "m", "m", "rad", "rad", "rad", "1")
STEP = re.compile(r"(\d+)$")


@dataclass
class Steps:
    """One episode's rows, in no particular order."""

    numbers: list[int] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    actions: list[list[float]] = field(default_factory=list)
    states: list[list[float] | None] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)


def open_lapa(path: Path, fps: float | None) -> OwnSource | RowSource:
    own = read_card(path) if path.is_dir() else None
    return OwnSource(path, own, fps) if own else RowSource(path, fps)


class OwnSource:
    """A tree that this program wrote: rows, states and further columns come from the sidecars."""

    def __init__(self, path: Path, own: CardFile, fps: float | None) -> None:
        self.path, self.fps = path, fps
        self.card = replace(own.card, fps=fps or own.card.fps)
        names = [file.stem for file in (path / _sidecar.FOLDER).glob("episode_*.safetensors")]
        self._ids = sorted(names, key=lambda name: int(name.rpartition("_")[2]))

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> list[str]:
        return list(self._ids)

    def close(self) -> None:
        pass

    def episode(self, index: int) -> Episode:
        name = self._ids[index]
        try:
            kept = _sidecar.load(self.path / _sidecar.FOLDER / f"{name}.safetensors")
        except UserError as error:
            raise BadEpisode(name, error.sentence) from error
        record, frames = kept.record, {}
        for camera, folder in sorted(record["folders"].items()):
            pictures = self.path / "data" / folder / name
            files = [pictures / f"step_{t}.{record['picture']}" for t in range(record["num_frames"])]
            frames[camera] = _pictures(name, files)
        return Episode(
            id=name,
            index=index,
            source=str(self.path / "data" / next(iter(record["folders"].values())) / name),
            fps=self.fps or record["fps"],
            frames=frames,
            actions=kept.actions,
            states=kept.states,
            instruction=record.get("instruction"),
            success=record.get("success"),
            split=record.get("split"),
            extras=kept.extras,
            provenance={"format": "lapa", "original_id": record["original_id"]},
        )


class RowSource:
    """A foreign fine-tuning file and the pictures it names.

    Args:
        path: the JSON array, the jsonl, or the folder that holds one of them.
        fps: frames per second; the rows do not say. 10 by default, said aloud.
    """

    def __init__(self, path: Path, fps: float | None) -> None:
        self.file = find_rows(path)
        self.fps = fps or DEFAULT_FPS
        notes = [] if fps else [f"LAPA's rows record no frame rate; {DEFAULT_FPS:g} fps is assumed"]
        self.episodes = _grouped(self.file, _rows(self.file, notes))
        if not self.episodes:
            raise UserError(f"{self.file} holds no rows")
        self.root = self._root()
        self.card = self._card(notes)

    def __len__(self) -> int:
        return len(self.episodes)

    def ids(self) -> list[str]:
        return list(self.episodes)

    def close(self) -> None:
        pass

    def episode(self, index: int) -> Episode:
        name = self.ids()[index]
        steps = self.episodes[name]
        order = np.argsort(steps.numbers, kind="stable")
        numbers = [steps.numbers[k] for k in order]
        gap = next((a for a, b in pairwise(numbers) if b != a + 1), None)
        if gap is not None:
            raise BadEpisode(name, f"{self.file} has step {gap} but step {gap + 1} is missing or there twice")
        files = [self.root / steps.images[k] for k in order]
        states = [steps.states[k] for k in order]
        texts = [text for k in order if (text := steps.texts[k])]
        notes = (
            [f"episode {name}: the instruction changes during the episode; the first is kept"]
            if len(set(texts)) > 1
            else []
        )
        return Episode(
            id=name,
            index=index,
            source=str(files[0].parent),
            fps=self.fps,
            frames={CAMERA: _pictures(name, files)},
            actions=self._table(name, [steps.actions[k] for k in order]),
            states=self._table(name, states) if all(states) else None,
            instruction=texts[0] if texts else None,
            provenance={"format": "lapa", "notes": notes},
        )

    def _table(self, name: str, rows: list[Any]) -> np.ndarray:
        try:
            table = np.array(rows, np.float64)
        except (TypeError, ValueError) as error:
            raise BadEpisode(name, f"{self.file}: its rows are no table of numbers ({error})") from error
        if table.ndim != 2 or table.shape[1] != len(LAPA_NAMES):
            raise BadEpisode(name, f"{self.file}: its rows have shape {table.shape}; 7 values per step were expected")
        return table

    def _root(self) -> Path:
        """The folder that ``image`` paths are relative to: the file's own, or one above it."""
        image = next(iter(self.episodes.values())).images[0]
        firsts = [steps.images[0] for steps in self.episodes.values()]
        for folder in (self.file.parent, *self.file.parent.parents[:2]):
            if any((folder / first).exists() for first in firsts):
                return folder
        raise UserError(f"{self.file} names the picture '{image}', which is not there")

    def _first(self) -> Episode:
        """The first readable episode shows what there is; when none is, its reason is the data set's."""
        reasons = []
        for index in range(len(self)):
            try:
                return self.episode(index)
            except BadEpisode as bad:
                reasons.append(bad.sentence)
        raise UserError(f"no episode of {self.file} can be read: {reasons[0]}")

    def _card(self, notes: list[str]) -> DatasetCard:
        first = self._first()
        notes.append("which gripper value means open is not recorded")
        spec = ActionSpec(LAPA_NAMES, UNITS, "delta", "end-effector", "unknown", 6, None, rate=self.fps)
        size = first.frames[CAMERA]
        return DatasetCard(
            name=self.file.stem,
            format="lapa",
            fps=self.fps,
            cameras=(CameraInfo(CAMERA, size.height, size.width),),
            actions=spec,
            state_names=STATE_NAMES if first.states is not None else None,
            notes=notes,
        )


def _pictures(episode: str, files: list[Path]) -> FrameStream:
    return stored_frames(episode, lambda k: str(files[k]), files.__getitem__, len(files))


def find_rows(path: Path) -> Path:
    """The file of rows: ``path`` itself, or the one JSON array (else the one jsonl) in the folder."""
    if path.is_file():
        return path
    arrays = [file for file in sorted(path.glob("*.json")) if _starts_with(file, b"[")]
    found = arrays or sorted(path.glob("*.jsonl"))
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(file.name for file in found)
        raise UserError(f"{path} holds several files of rows: {listed}", again(source=found[0], from_format="lapa"))
    tables = [file.name for file in path.glob("*.csv")]
    hint = f"; {tables[0]} is a table of action bins, not episodes" if tables else ""
    raise UserError(f"{path} holds no LAPA rows (a JSON array or a jsonl){hint}")


def _starts_with(file: Path, mark: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(64).lstrip().startswith(mark)


def _rows(file: Path, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of a JSON array or of a jsonl, whose last line may be cut off (said in ``notes``)."""
    if not _starts_with(file, b"{"):
        rows = read_json(file)
        if not isinstance(rows, list):
            raise UserError(f"{file} is no JSON array of rows")
        yield from enumerate(rows)
        return
    with file.open(encoding="utf8") as lines:
        for number, line in enumerate(lines):
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                if line.endswith("\n"):
                    raise UserError(f"{file}: line {number + 1} is not valid JSON ({error})") from error
                notes.append(f"{file.name} ends in the middle of line {number + 1}; that step is left out")


def _grouped(file: Path, rows: Iterator[tuple[int, dict[str, Any]]]) -> dict[str, Steps]:
    """Rows by episode, in order of first appearance. An episode is called what the folder of its steps is called."""
    folders: dict[str, Steps] = {}
    for number, row in rows:
        if not isinstance(row, dict) or "id" not in row:
            raise UserError(f"{file}: row {number} has no 'id'")
        if "image" not in row:
            raise UserError(f"{file}: row {number} has no 'image'; rows of vision tokens alone hold no pictures")
        where = PurePosixPath(str(row["id"]))
        match = STEP.search(where.name)
        if match is None:
            raise UserError(f"{file}: the id '{row['id']}' of row {number} does not end in a step number")
        if PurePosixPath(row["image"]).is_absolute() or ".." in PurePosixPath(row["image"]).parts:
            raise UserError(f"{file}: the picture '{row['image']}' of row {number} does not lie inside the data set")
        steps = folders.setdefault(str(where.parent), Steps())
        answer = _turn(row, 1)
        actions = row.get("raw_actions", answer.get("raw_actions"))
        if actions is None:
            raise UserError(f"{file}: row {number} has no 'raw_actions'")
        steps.numbers.append(int(match[1]))
        steps.images.append(row["image"])
        steps.actions.append(actions)
        steps.states.append(_state(answer.get("states")))
        steps.texts.append(instruction_of(str(_turn(row, 0).get("value") or row.get("instruction") or "")))
    short = {folder: PurePosixPath(folder).name for folder in folders}
    unique = len(set(short.values())) == len(short)
    return {short[folder] if unique else folder: steps for folder, steps in folders.items()}


def _turn(row: dict[str, Any], index: int) -> dict[str, Any]:
    turns = row.get("conversations") or []
    return turns[index] if len(turns) > index else {}


def _state(states: dict[str, Any] | None) -> list[float] | None:
    """eef_pos, eef_euler and gripper_state as 7 values; None when one of them is absent."""
    if not states or not {"eef_pos", "eef_euler", "gripper_state"} <= states.keys():
        return None
    return [*states["eef_pos"], *states["eef_euler"], states["gripper_state"]]
