"""RLDS episodes out of TFRecord files: which features are cameras, actions, states, text and further columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.types import ActionSpec, CameraInfo, DatasetCard, Episode, FrameStream
from worldsim.data.doctor import FLAT_RANGE
from worldsim.data.gripper import GripperSense, checked_open
from worldsim.data.poses import POSE_NAMES
from worldsim.formats import _oxe_tables as tables
from worldsim.formats._images import stored_frames
from worldsim.formats._rlds_layout import FEATURES, Layout, read_layout
from worldsim.formats._rlds_roles import TEXT_KEYS, assign, column_names
from worldsim.formats._tfds_features import Feature, count_values, decode_tensor, decode_text, read_features, values
from worldsim.formats._tfexample import parse
from worldsim.formats._tfrecord import read

PEEK_EPISODES = 32
PEEK_ENOUGH = 3
"""Episodes looked at on opening to learn the gripper's sense: at most 32, fewer as soon as three of them show it."""


class RldsSource:
    """An RLDS data set opened for reading; one record in memory.

    Args:
        path: a version folder, the folder above it, or the one above that.
        fps: overrides the table of known data sets.
        state: comma-separated observation names that make up the states; default ``state`` where there is one.
    """

    def __init__(self, path: Path, *, fps: float | None = None, state: str | None = None) -> None:
        self.layout: Layout = read_layout(path)
        self.roles = assign(read_features(self.layout.folder / FEATURES), state)
        self.meaning = self._known_meaning()
        self.said: set[str] = set()  # cameras whose presence flags the card already doubts
        notes = list(self.layout.notes)
        self.fps = self._fps(fps, notes)
        if self.roles.unread:
            keys = ", ".join(feature.key for feature in self.roles.unread)
            notes.append(f"not read, because they are no colour pictures, text or plain columns: {keys}")
        self.card = self._card(notes)

    def __len__(self) -> int:
        return len(self.layout.places)

    def ids(self) -> list[str]:
        return [place.id for place in self.layout.places]

    def close(self) -> None:
        pass

    def episode(self, index: int) -> Episode:
        place = self.layout.places[index]
        where = place.shard.path
        if place.record < 0:
            raise BadEpisode(place.id, str(place.shard.damage))
        try:
            record = parse(read(place.shard, place.record))
            return self._episode(index, record)
        except ValueError as error:
            raise BadEpisode(place.id, f"record {place.record} of {where}: {error}") from error
        except BadEpisode:
            raise
        except UserError as error:
            raise BadEpisode(place.id, error.sentence) from error

    def _episode(self, index: int, record: Mapping[str, Any]) -> Episode:
        place, roles = self.layout.places[index], self.roles
        count = self._steps(record)
        texts = self._texts(record, count)
        metadata = {feature.key: self._constant(feature, record) for feature in roles.metadata if feature.key in record}
        success = next((v for k, v in metadata.items() if k.rsplit("/", 1)[-1] == "success"), None)
        frames = {feature.name: self._frames(feature, record, count, place.id) for feature in roles.cameras}
        contradicted = self._contradicted(metadata, frames)
        notes = [f"'{name}' changes during the episode; the first is kept" for name in texts.varying]
        notes += [_flag_note(contradicted)] if contradicted else []
        return Episode(
            id=place.id,
            index=index,
            source=str(place.shard.path),
            fps=self.fps,
            frames=dict(sorted(frames.items())),
            actions=self._table(roles.actions, record, count),
            states=self._table(roles.states, record, count),
            instruction=texts.instruction,
            success=None if success is None else bool(success),
            split=place.split,
            extras={f.name: decode_tensor(f, _require(record, f), count) for f in roles.extras},
            provenance={
                "format": "rlds",
                "dataset": f"{self.layout.name}/{self.layout.version}",
                "record": place.record,
                "metadata": metadata,
                "texts": texts.constant,
                "contradicted": contradicted,
                "notes": [f"episode {place.id}: {note}" for note in notes],
            },
        )

    def _steps(self, record: Mapping[str, Any]) -> int:
        """T: every picture and scalar of a step has one entry each."""
        for feature in (*self.roles.cameras, *self.roles.texts, *self.roles.extras, *self.roles.actions):
            if feature.kind != "tensor" or (not feature.shape and feature.encoding == "none"):
                return count_values(_require(record, feature))
        raise ValueError(f"its number of steps is unknown: {FEATURES} declares no picture and no scalar per step")

    def _frames(self, feature: Feature, record: Mapping[str, Any], count: int, episode: str) -> FrameStream:
        message = _require(record, feature)
        if feature.kind == "tensor":
            return FrameStream.of(decode_tensor(feature, message, count))
        encoded = values(message)
        if not isinstance(encoded, list) or len(encoded) != count:
            raise ValueError(f"'{feature.key}' holds {len(encoded)} pictures in an episode of {count} steps")
        place = f"'{feature.key}'"
        return stored_frames(episode, lambda k: f"frame {k} of {place}", encoded.__getitem__, count)

    def _table(self, features: list[Feature], record: Mapping[str, Any], count: int) -> np.ndarray | None:
        """Columns side by side, ``[T, D]``. Integers and flags among floats become floats of the floats' own width."""
        if not features:
            return None
        parts = [decode_tensor(f, _require(record, f), count).reshape(count, -1) for f in features]
        floats = [part.dtype for part in parts if part.dtype.kind == "f"]
        dtype = np.result_type(*(floats or [part.dtype for part in parts]))
        return np.concatenate([part.astype(dtype) for part in parts], axis=1)

    def _texts(self, record: Mapping[str, Any], count: int) -> _Texts:
        texts = _Texts()
        for feature in self.roles.texts:
            steps = _strings(feature, record, count)
            found = next((step.strip() for step in steps if step and step.strip()), None)
            if found is None:
                continue
            texts.constant[feature.name] = found
            if any(step != steps[0] for step in steps):
                texts.varying.append(feature.name)
        for key in TEXT_KEYS:
            if texts.instruction is None:
                texts.instruction = texts.constant.get(key)
        return texts

    def _constant(self, feature: Feature, record: Mapping[str, Any]) -> Any:
        if feature.kind == "text":
            return decode_text(feature, record[feature.key])[0]
        decoded = decode_tensor(feature, record[feature.key], 1)[0]
        return decoded.tolist()

    def _contradicted(self, metadata: dict[str, Any], frames: dict[str, FrameStream]) -> list[str]:
        """Cameras whose presence flag (``has_image_0``) says no where the picture says yes."""
        flags = {key.rsplit("/", 1)[-1]: value for key, value in metadata.items()}
        doubted = [name for name in frames if not flags.get(f"has_{name}", True) and name not in self.said]
        return sorted(name for name in doubted if np.ptp(frames[name].rows([0]), axis=(0, 1, 2)).max() > FLAT_RANGE)

    def _known_meaning(self) -> tables.Meaning | None:
        """The published meaning of rows, if the features have its shape."""
        meaning = tables.MEANING.get(self.layout.name)
        shapes = [tuple(f.shape for f in group) for group in (self.roles.actions, self.roles.states)]
        return meaning if meaning and shapes == [((7,),), ((len(meaning.state_names),),)] else None

    def _fps(self, wanted: float | None, notes: list[str]) -> float:
        if wanted is not None:
            return wanted
        known = tables.FPS.get(self.layout.name)
        if known is None:
            notes.append(
                f"RLDS records no frame rate and '{self.layout.name}' is in no table; {tables.DEFAULT_FPS:g} fps is assumed"
            )
            return tables.DEFAULT_FPS
        notes.append(f"RLDS records no frame rate; {known:g} fps is the published rate of '{self.layout.name}'")
        return float(known)

    def _card(self, notes: list[str]) -> DatasetCard:
        """Look at the first readable episodes: real picture sizes, presence flags, and the gripper's sense."""
        first, sense = None, GripperSense()
        for index in range(min(PEEK_EPISODES, len(self))):
            try:
                episode = self.episode(index)
            except BadEpisode:
                continue  # reported when it is asked for
            first = first or episode
            if self.meaning is None or episode.actions is None or episode.states is None or sense.episodes >= PEEK_ENOUGH:
                break
            sense.add(episode.actions[:, 6], episode.states[:, self.meaning.state_gripper])
        if first is None:
            raise UserError(f"no episode of {self.layout.folder} can be read", ["worldsim", "doctor", self.layout.folder])
        doubted = first.provenance["contradicted"]
        self.said |= set(doubted)
        notes += self._size_notes(first) + ([_flag_note(doubted)] if doubted else [])
        return DatasetCard(
            name=self.layout.name,
            format="rlds",
            fps=self.fps,
            cameras=tuple(CameraInfo(name, s.height, s.width) for name, s in first.frames.items()),
            actions=self._spec(first, sense, notes),
            state_names=self._state_names(first),
            splits=self.layout.splits,
            notes=notes,
            extras=tuple(sorted(feature.name for feature in self.roles.extras)),
        )

    def _size_notes(self, episode: Episode) -> list[str]:
        notes = []
        for feature in self.roles.cameras:
            real, declared = episode.frames[feature.name].shape[1:], feature.shape
            if any(size not in (None, found) for size, found in zip(declared, real)):
                notes.append(f"{FEATURES} declares '{feature.key}' as {declared}; its pictures are {real}")
        return notes

    def _spec(self, episode: Episode, sense: GripperSense, notes: list[str]) -> ActionSpec | None:
        if episode.actions is None:
            return None
        if self.meaning is None:
            names = column_names(self.roles.actions, episode.actions.shape[1])
            return ActionSpec.unknown(len(names), self.fps, names)
        what = "the gripper's command and its measured opening"
        gripper_open, note = checked_open(self.meaning.gripper_open, sense, follows=True, what=what)
        notes += [note] if note else []
        return ActionSpec(
            names=(*POSE_NAMES, "gripper"),
            units=("m", "m", "m", "rad", "rad", "rad", "1"),
            mode="delta",
            space="end-effector",
            frame=self.meaning.frame,
            gripper=6,
            gripper_open=gripper_open,
            rate=self.fps,
        )

    def _state_names(self, episode: Episode) -> tuple[str, ...] | None:
        if episode.states is None:
            return None
        return self.meaning.state_names if self.meaning else column_names(self.roles.states, episode.states.shape[1])


@dataclass
class _Texts:
    instruction: str | None = None
    constant: dict[str, str] = field(default_factory=dict)
    varying: list[str] = field(default_factory=list)


def _flag_note(cameras: list[str]) -> str:
    flags = ", ".join(f"has_{name}" for name in cameras)
    return f"the presence flags {flags} are 0 but these cameras show pictures; they are kept"


def _require(record: Mapping[str, Any], feature: Feature) -> Any:
    if feature.key not in record:
        raise ValueError(f"it lacks '{feature.key}', which {FEATURES} declares")
    return record[feature.key]


def _strings(feature: Feature, record: Mapping[str, Any], count: int) -> list[str | None]:
    if feature.kind == "text":
        return decode_text(feature, _require(record, feature))
    rows = decode_tensor(feature, _require(record, feature), count).reshape(count, -1)
    return [bytes(row[row > 0].astype(np.uint8)).decode("utf8", errors="replace") for row in rows]
