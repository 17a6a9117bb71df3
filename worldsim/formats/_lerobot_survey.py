"""What a LeRobot dataset really holds, as its files show it; where ``info.json`` says otherwise, that becomes a note."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from worldsim.core.errors import UserError, again, did_you_mean
from worldsim.data import video
from worldsim.formats import _lerobot_table as tables
from worldsim.formats._lerobot_images import image_size
from worldsim.formats._lerobot_info import STRUCTURAL, Info, camera_names, declared_size, is_camera, is_depth
from worldsim.formats._lerobot_v2 import LayoutV2
from worldsim.formats._lerobot_v3 import LayoutV3

FPS_TOLERANCE = 0.01
"""Relative; containers round rates (30 and 30000/1001 differ by 0.1 %)."""


@dataclass(frozen=True)
class Camera:
    """One camera as its files really are. ``rate`` is the video files' own, frames per second; 0 for images."""

    key: str
    name: str
    height: int
    width: int
    rate: float

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


class Survey:
    """Columns, cameras, rate and split of a dataset, found once when it is opened.

    Attributes:
        columns: name -> arrow type, of the first parquet file that can be read.
        images: keys of cameras whose frames lie inside the parquet.
        cameras: those with at least one file, sorted by name.
        notes: every disagreement, one sentence each.
    """

    def __init__(self, info: Info, layout: LayoutV2 | LayoutV3, image_keys: Sequence[str] | str | None) -> None:
        self.info, self.layout = info, layout
        self.ids = [f"episode_{index:06d}" for index in layout.indices]
        self.notes: list[str] = list(layout.notes)
        self.columns = self._columns()
        self.images = {key for key, kind in self.columns.items() if tables.is_image(kind)}
        self.cameras = self._cameras(image_keys.split(",") if isinstance(image_keys, str) else image_keys)
        self._check_totals()

    def _columns(self) -> dict[str, Any]:
        """Name -> arrow type of the columns of the first parquet file that can be read."""
        for index in self.layout.indices:
            try:
                schema = tables.schema(self.layout.rows(index).path)
            except UserError:
                continue  # this episode is refused by name when it is asked for
            return {name: schema.field(name).type for name in schema.names}
        first = self.layout.rows(self.layout.indices[0]).path
        raise UserError(f"no parquet file of {self.info.root} can be read; the first is {first}")

    def number_key(self, option: str, asked: str | None, default: str) -> str | None:
        numbers = [n for n, kind in self.columns.items() if not tables.is_image(kind) and n not in STRUCTURAL]
        if asked is not None and asked not in numbers:
            raise UserError(f"{option} '{asked}' is no column of {self.info.root}{did_you_mean(asked, numbers)}")
        return asked or (default if default in numbers else None)

    def _cameras(self, asked: Sequence[str] | None) -> list[Camera]:
        declared = {k: f for k, f in self.info.features.items() if is_camera(f)}
        known = camera_names([*declared, *sorted(self.images - set(declared))])
        keys = [k for k in known if not is_depth(declared.get(k, {}))]
        self.notes += [f"depth camera {known[k]} is not read" for k in known if k not in keys and not asked]
        if asked is not None:
            by_name = {**{name: key for key, name in known.items()}, **{key: key for key in known}}
            for name in asked:
                if name not in by_name:
                    raise UserError(f"image key '{name}' is no camera of {self.info.root}{did_you_mean(name, by_name)}")
            keys = [by_name[name] for name in asked]
        self.notes += [f"videos/{name} is not declared in info.json and is not read" for name in self.layout.undeclared()]
        found = [self._camera(key, known[key], declared.get(key, {})) for key in keys]
        return sorted((camera for camera in found if camera), key=lambda camera: camera.name)

    def _camera(self, key: str, name: str, feature: dict[str, Any]) -> Camera | None:
        """The camera as its first readable file shows it; None, with a note, when it has no file at all."""
        declared = declared_size(feature)
        probe = self._image_camera if key in self.images else self._video_camera
        camera, exists = probe(key, name)
        if camera is None and exists and declared:
            return Camera(key, name, *declared, 0.0 if key in self.images else self.info.fps)
        if camera is None:
            self.notes.append(f"camera {key} is declared but has no file; it is left out")
        elif declared and declared != camera.size:
            wrong, real = f"{declared[0]}x{declared[1]}", f"{camera.height}x{camera.width}"
            self.notes.append(f"camera {key} is declared {wrong} but its files are {real}")
        return camera

    def _video_camera(self, key: str, name: str) -> tuple[Camera | None, bool]:
        exists, seen = False, None
        for index in self.layout.indices:
            try:
                path = self.layout.clip(index, key).path
            except UserError:
                continue  # the episode has no such clip; it is refused by name when it is asked for
            if path == seen or not path.exists():
                continue
            exists, seen = True, path
            try:
                info = video.header(path)
            except UserError:
                continue
            return Camera(key, name, info.height, info.width, info.fps), True
        return None, exists

    def _image_camera(self, key: str, name: str) -> tuple[Camera | None, bool]:
        for index in self.layout.indices:
            rows = self.layout.rows(index)
            try:
                return Camera(key, name, *image_size(self.info.root, rows.path, rows.start, key), 0.0), True
            except UserError:
                continue
        return None, True

    def fps(self, asked: float | None) -> float:
        """The rate that two of info.json, the files and the timestamps agree on; a different one is a note."""
        declared, stamps = self.info.fps, self._timestamp_rate()
        filmed = next((camera.rate for camera in self.cameras if camera.rate > 0), None)
        fps = declared
        if filmed and not _same(filmed, declared):
            self.notes.append(f"info.json declares {declared:g} fps but the video files run at {filmed:g}")
            fps = declared if stamps and _same(stamps, declared) else filmed
        if stamps and not _same(stamps, declared):
            self.notes.append(f"info.json declares {declared:g} fps but the timestamps advance at {stamps:g}")
            fps = stamps if filmed is None or _same(filmed, stamps) else fps
        if fps <= 0 and not asked:
            raise UserError(f"{self.info.path} declares {declared:g} fps", again(fps=10))
        # Within tolerance the files were cut at the declared rate; a rounded container rate would drift.
        self.cameras = [replace(c, rate=declared if _same(c.rate, declared) else c.rate) for c in self.cameras]
        return asked if asked is not None else fps

    def _timestamp_rate(self) -> float | None:
        index = self.layout.indices[0]
        if "timestamp" not in self.columns:
            return None
        try:
            rows = self.layout.select(index, self.layout.rows(index))
            table = tables.read_rows(rows.path, rows.start, rows.stop or 0, ["timestamp"])
            stamps = tables.to_numpy(table["timestamp"], "timestamp", rows.path)
        except UserError:
            return None  # the episode is refused by name when it is asked for
        if stamps is None or len(stamps) < 2 or stamps[-1] <= stamps[0]:
            return None
        return float(round((len(stamps) - 1) / float(stamps[-1] - stamps[0]), 3))

    def splits(self) -> dict[str, list[str]] | None:
        """The dataset's own split; a set with nothing but ``train`` has none."""
        parts: dict[str, list[str]] = {}
        last = max(self.layout.indices)
        for name, text in self.info.splits.items():
            limits = re.fullmatch(r"(\d*):(\d*)", text.strip())
            if limits is None:
                self.notes.append(f"info.json has a split that is no range: {name} {text}")
                continue
            low, high = int(limits[1] or 0), int(limits[2] or last + 1)
            if high > last + 1:
                self.notes.append(f"info.json splits say {name} {text} but there are {len(self.ids)} episodes")
            parts[name] = [id for id, index in zip(self.ids, self.layout.indices) if low <= index < high]
        return parts if sum(bool(part) for part in parts.values()) > 1 else None

    def _check_totals(self) -> None:
        lengths = [self.layout.length(index) for index in self.layout.indices]
        frames = sum(n for n in lengths if n is not None)
        for name, declared, real in (
            ("episodes", self.info.total_episodes, len(self.ids)),
            ("frames", self.info.total_frames, None if None in lengths else frames),
        ):
            if declared is not None and real is not None and declared != real:
                self.notes.append(f"info.json declares {declared} {name} but there are {real}")

    def width(self, key: str) -> int:
        """Numbers per row, from the first row that can be read."""
        for index in self.layout.indices:
            rows = self.layout.rows(index)
            try:
                table = tables.read_rows(rows.path, rows.start, rows.start + 1, [key])
                values = tables.to_numpy(table[key], key, rows.path)
            except (UserError, KeyError):
                continue
            if values is None:
                raise UserError(f"column {key} of {rows.path} holds no numbers")
            return int(np.prod(values.shape[1:], dtype=int))
        raise UserError(f"no parquet file of {self.info.root} has a readable column {key}")


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= FPS_TOLERANCE * b
