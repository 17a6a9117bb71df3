"""What a robot saw and did, on disk as it happens: a kill -9 loses at most the last second.

::

    robot_log.json                      fps, cameras, meaning of actions, state names, robot, mode, task
    episode_000000/steps.jsonl          one line per frame; line t: the frame's place in its film, state, wish, what was sent
    episode_000000/<camera>.mjpeg       JPEG pictures, one after another; any player shows them
    episode_000000/end.json             why it ended; absent after a kill

A line is written after its pictures, so whatever a line names is there; a line that a kill has torn is ignored. ``sent`` of
line t acts between frame t and frame t + 1.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from worldsim.core.errors import UserError
from worldsim.core.files import read_json, write_json
from worldsim.core.types import BLOCK_FRAMES, ActionSpec, CameraInfo, DatasetCard, FrameStream

HEAD, STEPS, END = "robot_log.json", "steps.jsonl", "end.json"
QUALITY = 95
PATIENCE = 5.0
"""Seconds after which a disk that takes nothing is given up."""


@dataclass(frozen=True)
class Head:
    """What holds for all episodes of a log.

    Attributes:
        cameras: name -> (height, width). mode: ``watch``, ``shadow``, ``live`` or ``dream``. done: what the recorded
            actions are: ``sent``, ``reached`` (a person moved the joints: where they were one frame later) or ``none``.
    """

    robot: str
    mode: str
    policy: str
    done: str
    fps: float
    cameras: dict[str, tuple[int, int]]
    state_names: tuple[str, ...]
    action_spec: ActionSpec
    task: str = ""

    def card(self, name: str) -> DatasetCard:
        return DatasetCard(
            name=name,
            format="robot-log",
            fps=self.fps,
            cameras=tuple(CameraInfo(camera, *self.cameras[camera]) for camera in sorted(self.cameras)),
            actions=None if self.done == "none" else self.action_spec,
            state_names=self.state_names,
            robot=self.robot,
        )


def write_head(folder: Path, head: Head) -> None:
    """Begin a log, or go on with one of the same robot.

    Raises:
        UserError: the log there is of another robot, rate or mode.
    """
    path = folder / HEAD
    if path.exists() and (there := read_head(folder)) != head:
        pairs = zip(asdict(there).items(), asdict(head).values())
        key, old, new = next((key, old, new) for (key, old), new in pairs if old != new)
        raise UserError(f"{folder} holds a log with another {key} ({old}, now {new}); choose another --out")
    write_json(path, {**asdict(head), "action_spec": head.action_spec.to_json()})


def read_head(folder: Path) -> Head:
    """
    Raises:
        UserError: there is no log, or its head is damaged.
    """
    path = folder / HEAD
    values = read_json(path)
    try:
        cameras = {name: (int(size[0]), int(size[1])) for name, size in values.pop("cameras").items()}
        spec = ActionSpec.from_json(values.pop("action_spec"))
        return Head(cameras=cameras, action_spec=spec, state_names=tuple(values.pop("state_names")), **values)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the head of a robot's log: {error}") from error


def next_episode(folder: Path) -> Path:
    """A new folder ``episode_000000``, ``episode_000001``, …"""
    taken = [int(path.name.rpartition("_")[2]) for path in folder.glob("episode_*") if path.name[-6:].isdigit()]
    path = folder / f"episode_{max(taken, default=-1) + 1:06d}"
    path.mkdir(parents=True)
    return path


class EpisodeLog:
    """Writes one episode from a thread of its own, so that the loop keeps its rate.

    At most ``backlog`` steps wait to be written; then :meth:`add` waits too, and the loop sees that it is late.

    Args:
        folder: of the episode, empty. backlog: one second's steps.
    """

    def __init__(self, folder: Path, backlog: int, quality: int = QUALITY) -> None:
        self.folder, self.quality, self.count = folder, quality, 0
        self.waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(max(backlog, 1))
        self.films: dict[str, BinaryIO] = {}
        self.failed: Exception | None = None
        self.lines: TextIO = (folder / STEPS).open("a", encoding="utf8")
        self.thread = threading.Thread(target=self._write, name="robot-log", daemon=True)
        self.thread.start()

    def add(self, pixels: Mapping[str, np.ndarray], **step: Any) -> None:
        """One step: uint8 pictures that no longer change, and values that JSON knows (arrays become lists).

        Raises:
            Exception: what kept an earlier step from being written (a full disk).
        """
        if self.failed is not None:
            raise self.failed
        try:
            self.waiting.put({"pixels": pixels, **step}, timeout=PATIENCE)
        except queue.Full:
            raise OSError(f"{self.folder}: nothing could be written for {PATIENCE:g} s") from None
        self.count += 1

    def close(self, **end: Any) -> None:
        """Write what waits, then why it ended.

        Raises:
            Exception: what kept a step from being written.
        """
        self.waiting.put(None)
        self.thread.join()
        self.lines.close()
        for film in self.films.values():
            film.close()
        if self.failed is not None:
            raise self.failed
        write_json(self.folder / END, {"steps": self.count, **end})

    def _write(self) -> None:
        while (step := self.waiting.get()) is not None:
            if self.failed is None:
                try:
                    self._one(**step)
                except Exception as error:  # handed to the loop by add and close
                    self.failed = error

    def _one(self, pixels: Mapping[str, np.ndarray], **step: Any) -> None:
        places = {camera: self._picture(camera, frame) for camera, frame in pixels.items()}
        self.lines.write(json.dumps({"frames": places, **step}, default=_plain) + "\n")
        self.lines.flush()

    def _picture(self, camera: str, frame: np.ndarray) -> list[int]:
        """Append a picture; its place in the film as (offset, bytes)."""
        import cv2

        film = self.films.get(camera)
        if film is None:
            film = self.films[camera] = (self.folder / f"{camera}.mjpeg").open("ab", buffering=0)
        full = [
            cv2.IMWRITE_JPEG_QUALITY,
            self.quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ]
        data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), full)[1].tobytes()
        offset = film.tell()
        film.write(data)
        return [offset, len(data)]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def episodes(folder: Path) -> list[Path]:
    """Folders of the episodes that hold at least one whole step."""
    found = sorted(path for path in folder.glob("episode_*") if (path / STEPS).exists())
    return [path for path in found if next(_lines(path), None) is not None]


def read_steps(episode: Path) -> list[dict[str, Any]]:
    """Every whole line, in order; a last line that a kill tore is left out.

    Raises:
        UserError: a line before the last is damaged.
    """
    return list(_lines(episode))


def _lines(episode: Path) -> Iterator[dict[str, Any]]:
    with (episode / STEPS).open(encoding="utf8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"line {number} of {episode / STEPS} is damaged: {error}") from error


def frames(episode: Path, camera: str, steps: list[dict[str, Any]], size: tuple[int, int]) -> FrameStream:
    """The pictures of one camera, decoded when asked for, uint8 ``[T, H, W, 3]``; ``size`` is (height, width)."""
    path, places = episode / f"{camera}.mjpeg", [step["frames"][camera] for step in steps]

    def rows(indices: np.ndarray) -> np.ndarray:
        with path.open("rb") as film:
            pictures = [_decoded(film, path, places[k], size) for k in indices]
        return np.stack(pictures) if pictures else np.empty((0, *size, 3), np.uint8)

    def blocks() -> Iterator[np.ndarray]:
        for at in range(0, len(places), BLOCK_FRAMES):
            yield rows(np.arange(at, min(at + BLOCK_FRAMES, len(places))))

    return FrameStream(len(places), *size, blocks, rows)


def _decoded(film: BinaryIO, path: Path, place: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The picture at ``place`` = (offset, bytes)."""
    import cv2

    offset, count = place
    film.seek(offset)
    picture = cv2.imdecode(np.frombuffer(film.read(count), np.uint8), cv2.IMREAD_COLOR)
    if picture is None or picture.shape[:2] != size:
        raise UserError(f"{path} is damaged: there is no picture of {size[0]}x{size[1]} at byte {offset}")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
