"""Reading a Bridge / IRASim tree. Layout and meaning: ``bridge.py``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.types import ActionSpec, CameraInfo, DatasetCard, Episode, FrameStream
from worldsim.data.card import read_card
from worldsim.data.gripper import GripperSense, checked_open
from worldsim.data.poses import POSE_NAMES
from worldsim.data.video import of_episode, open_stream, probe
from worldsim.formats import _bridge_tree as tree
from worldsim.formats import _sidecar
from worldsim.formats._bridge_annotation import GRIPPER, Annotation, read_annotation

PEEK_EPISODES = 20
"""Annotations looked at on opening: real cameras, the gripper's sense, stored actions against states."""
SAME = 1e-4
"""Stored and recomputed actions that differ by more (m, rad) are worth a note."""
OPEN = 0.0
"""``continuous_gripper_state``: 0 = open, 1 = closed; ``action[:, 6]``: 1 = open. # source: Cosmos-Predict2's documentation"""
UNITS = ("m", "m", "m", "rad", "rad", "rad", "1")

Which = Literal["auto", "recomputed", "stored"]


class BridgeSource:
    """A Bridge tree opened for reading.

    Args:
        path: the tree, or a folder above it.
        fps: overrides what the video files say (IRASim's say 4 for BridgeData V2, which was recorded at 5 Hz).
        actions: ``recomputed`` from the states, ``stored`` in the annotation, or ``auto``: recomputed in a foreign tree,
            the source's own rows in one that this program wrote.
    """

    def __init__(self, path: Path, *, fps: float | None = None, actions: Which = "auto") -> None:
        if actions not in ("auto", "recomputed", "stored"):
            raise UserError(f"'reader.actions' = '{actions}' is not auto, recomputed or stored")
        self.root = tree.root(path)
        self.own = read_card(self.root)
        self.which: Which = actions
        notes: list[str] = []
        self.places = self._present(tree.places(self.root), notes)
        self.fps = fps
        self.cameras: list[int] | None = None
        self.card = self._own_card() if self.own else self._foreign_card(notes)

    def __len__(self) -> int:
        return len(self.places)

    def ids(self) -> list[str]:
        return [place.id for place in self.places]

    def close(self) -> None:
        pass

    def episode(self, index: int) -> Episode:
        place = self.places[index]
        annotation = self._annotation(place)
        try:
            return self._own_episode(index, annotation) if self.own else self._foreign_episode(index, annotation)
        except BadEpisode:
            raise
        except UserError as error:
            raise BadEpisode(place.id, error.sentence) from error

    # -- a foreign tree

    def _foreign_episode(self, index: int, annotation: Annotation) -> Episode:
        place = self.places[index]
        chosen = range(len(annotation.videos)) if self.cameras is None else self.cameras
        videos = {_camera(k, len(annotation.videos)): annotation.videos[k] for k in chosen if k < len(annotation.videos)}
        frames, fps, notes = self._frames(place, videos, annotation.num_frames)
        stored = self.which == "stored" and not annotation.planar
        if stored and annotation.stored is None:
            raise BadEpisode(place.id, f"{place.annotation} has no 'action', which reader.actions=stored asks for")
        extras = {} if annotation.gripper is None else {GRIPPER: annotation.gripper}
        return Episode(
            id=place.id,
            index=index,
            source=str(place.annotation),
            fps=self.fps or fps,
            frames=frames,
            actions=annotation.stored if stored else annotation.actions,
            states=annotation.states,
            instruction=annotation.instruction,
            split=place.split,
            extras=extras,
            provenance={
                "format": "bridge",
                "original_id": annotation.original_id,
                "latents": annotation.latents,
                "notes": notes,
            },
        )

    def _frames(
        self, place: tree.Place, videos: dict[str, str], count: int
    ) -> tuple[dict[str, FrameStream], float, list[str]]:
        """A video may be longer than the annotation (its first frames are meant), never shorter."""
        frames, notes, rates = {}, [], []
        for name, relative in sorted(videos.items()):
            path = self.root / relative
            info = probe(path)
            if info.num_frames < count:
                raise BadEpisode(place.id, f"{path} holds {info.num_frames} frames; {place.annotation.name} needs {count}")
            if info.num_frames > count:
                notes.append(
                    f"episode {place.id}: {path.name} holds more frames than its annotation; the first ones are used"
                )
            stream = open_stream(path, 0, count, size=(info.height, info.width))
            frames[name] = of_episode(stream, place.id)
            rates.append(info.fps)
        if not frames:
            raise BadEpisode(place.id, f"{place.annotation} names no video")
        return frames, rates[0], notes

    def _foreign_card(self, notes: list[str]) -> DatasetCard:
        if not self.places:
            raise UserError(f"{self.root} names no video that is there; unpack videos/ next to annotation/")
        looked = self._peek()
        if not looked:
            self._annotation(self.places[0])  # says why
        self.cameras = self._real_cameras(looked, notes)
        first = self._first_episode()
        spec = self._spec(looked, first, notes)
        width = first.states.shape[1] if first.states is not None else 0
        names = POSE_NAMES + tuple(self._further_state(looked, k) for k in range(6, width)) if width else None
        if any(a.latents for a in looked):
            notes.append("latents beside the videos are named but not read: they are another model's (SDXL VAE) encoding")
        if self.fps is None and spec and not looked[0].planar and abs(first.fps - 4) < 0.01:
            notes.append(
                "the videos say 4 fps and are read so; if this is BridgeData V2, it was recorded at 5 Hz (--fps 5)"
            )
        parts: dict[str, list[str]] = {}
        for place in self.places:
            parts.setdefault(place.split or "", []).append(place.id)
        return DatasetCard(
            name=self.root.name,
            format="bridge",
            fps=first.fps,
            cameras=tuple(CameraInfo(name, s.height, s.width) for name, s in first.frames.items()),
            actions=spec,
            state_names=names,
            splits=None if "" in parts else parts,
            notes=notes,
            extras=(GRIPPER,) if looked[0].gripper is not None else (),
        )

    def _present(self, places: list[tree.Place], notes: list[str]) -> list[tree.Place]:
        """A partial download is fine: a split whose videos were not fetched at all is left out and said."""
        absent = {place.split for place in places if place.split and not (self.root / "videos" / place.split).is_dir()}
        if len(absent) < len({place.split for place in places}):
            notes += [
                f"split '{split}' has annotations but no folder videos/{split}; it is left out"
                for split in sorted(s for s in absent if s)
            ]
            places = [place for place in places if place.split not in absent]
        if any(place.annotation.parts[len(self.root.parts)] == tree.ANNOTATIONS[1] for place in places):
            notes.append("the annotations lie in 'annotations'; IRASim's own archives say 'annotation'")
        return places

    def _peek(self) -> list[Annotation]:
        looked = []
        for place in self.places[:: max(1, len(self.places) // PEEK_EPISODES)][:PEEK_EPISODES]:
            try:
                looked.append(self._annotation(place))
            except BadEpisode:
                continue  # reported when it is asked for
        return looked

    def _first_episode(self) -> Episode:
        """The first readable one shows real sizes; when none is, the first one's reason is the data set's."""
        reasons = []
        for index in range(len(self)):
            try:
                return self.episode(index)
            except BadEpisode as bad:
                reasons.append(bad.sentence)
        raise UserError(f"no episode of {self.root} can be read: {reasons[0]}", ["worldsim", "doctor", self.root])

    def _real_cameras(self, looked: list[Annotation], notes: list[str]) -> list[int]:
        """Cameras whose file exists in at least one of the annotations looked at."""
        count = max(len(a.videos) for a in looked)
        there = [k for k in range(count) if any(k < len(a.videos) and (self.root / a.videos[k]).exists() for a in looked)]
        absent = sorted(set(range(count)) - set(there)) if there else []
        notes += [f"camera {k} is named in the annotations but none of its files is there; it is dropped" for k in absent]
        return there or [0]

    def _spec(self, looked: list[Annotation], first: Episode, notes: list[str]) -> ActionSpec | None:
        if first.actions is None:
            return None
        if looked[0].planar:
            dim = first.actions.shape[1]
            names = ("x", "y") if dim == 2 else None
            return replace(ActionSpec.unknown(dim, first.fps, names), space="planar" if dim == 2 else "unknown")
        sense = GripperSense()
        for annotation in looked:
            if annotation.stored is not None and annotation.gripper is not None:
                sense.add(annotation.stored[:, 6], annotation.gripper)
        what = f"the stored action's gripper (1 = open) and {GRIPPER} (0 = open)"
        gripper_open, note = checked_open(OPEN, sense, follows=False, what=what)
        notes += [note] if note else []
        if self.which == "stored" and gripper_open is not None:
            gripper_open = 1.0 - gripper_open
        notes += _deviation_notes(looked)
        return _relative_spec(gripper_open, first.fps)

    def _further_state(self, looked: list[Annotation], column: int) -> str:
        """A state column beyond the pose is called gripper only where it *is* the gripper, in the same sense."""
        pairs = [(a.states[:, column], a.gripper) for a in looked if a.states is not None and a.gripper is not None]
        same = bool(pairs) and all(np.allclose(column, gripper, atol=1e-6) for column, gripper in pairs)
        return "gripper" if same else f"state_{column}"

    # -- a tree of our own

    def _own_card(self) -> DatasetCard:
        assert self.own is not None
        card = self.own.card
        fps = self.fps or card.fps
        if self.which == "auto" or card.actions is None or self._annotation(self.places[0]).planar:
            return replace(card, fps=fps)
        known = card.actions.gripper_open is not None  # then the annotations were written in the published senses
        gripper_open = {"stored": 1.0 - OPEN, "recomputed": OPEN}[self.which] if known else None
        return replace(card, fps=fps, actions=_relative_spec(gripper_open, fps))

    def _own_episode(self, index: int, annotation: Annotation) -> Episode:
        assert self.own is not None
        place = self.places[index]
        kept = _sidecar.load(tree.sidecar(self.root, place.annotation.parent.name, place.annotation.stem))
        frames, fps, notes = self._frames(place, kept.record["videos"], kept.record["num_frames"])
        actions = {"auto": kept.actions, "recomputed": annotation.actions, "stored": annotation.stored}[self.which]
        if annotation.planar:
            actions = kept.actions
        return Episode(
            id=place.id,
            index=index,
            source=str(place.annotation),
            fps=self.fps or kept.record.get("fps", fps),
            frames=frames,
            actions=actions,
            states=kept.states,
            instruction=kept.record.get("instruction"),
            success=kept.record.get("success"),
            split=kept.record.get("split"),
            extras=kept.extras,
            provenance={"format": "bridge", "original_id": kept.record["original_id"], "notes": notes},
        )

    def _annotation(self, place: tree.Place) -> Annotation:
        try:
            return read_annotation(place.annotation)
        except UserError as error:
            raise BadEpisode(place.id, error.sentence) from error


def _relative_spec(gripper_open: float | None, rate: float) -> ActionSpec:
    return ActionSpec((*POSE_NAMES, "gripper"), UNITS, "delta", "end-effector", "gripper", 6, gripper_open, rate)


def _camera(index: int, count: int) -> str:
    return f"camera_{index:0{len(str(max(count - 1, 0)))}d}"


def _deviation_notes(looked: list[Annotation]) -> list[str]:
    """How far the stored actions are from those that the states show, over the annotations looked at."""
    pairs = [(a.stored[:, :6], a.actions[:, :6]) for a in looked if a.stored is not None and a.actions is not None]
    gaps = [np.abs(stored - seen) for stored, seen in pairs if len(stored)]
    if not gaps:
        return []
    worst = np.concatenate(gaps).max(axis=0)
    if not worst.max() > SAME:
        return []
    return [
        f"stored actions differ from those computed from the states by up to {worst[:3].max():.2g} m and "
        f"{worst[3:].max():.2g} rad ({len(gaps)} episodes looked at); the latter are used unless reader.actions=stored"
    ]
