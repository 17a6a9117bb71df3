"""Imagined clips on disk, ``frames/<episode>.npz``: with them anyone can recompute every score.

Keys: ``pred`` and ``truth``, uint8 ``[1 + n, H, W, 3]`` with the given frame first; ``actions`` ``[n, r, A]``, the rows that
were used, and ``action_names`` ``[A]`` where they have names; ``frame_index``, the given frame's number in the source;
``fps``; ``episode``; ``instruction``. Where there are several samples: ``samples`` ``[N, 1 + n, H, W, 3]`` (``pred`` is the
first). Where they were asked for: ``permuted`` ``[P, 1 + n, H, W, 3]``, imagined with the actions ``permuted_actions``
``[P, n, r, A]`` of the episodes ``permuted_episodes`` ``[P]``; and ``reconstruction``, ``truth`` through the model's codec.
What takes its worth from a score stands there too, as bool, absent where it is not so: ``teacher_forced`` (the actions have
seen true frames that were imagined) and ``trained_on`` (the model was trained on this episode).
Of a model that writes tokens: ``repeats`` ``[N, n]`` and ``truth_repeats`` ``[n]``, where a frame has the very tokens of the one
before it.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from worldsim.core.errors import UserError
from worldsim.core.files import replacing

MARKS = ("teacher_forced", "trained_on")


@dataclass
class Prediction:
    """One imagined clip; shapes as above, ``samples`` always with its axis of N >= 1."""

    episode: str
    samples: np.ndarray
    actions: np.ndarray
    truth: np.ndarray | None = None
    frame_index: int = 0
    fps: float = 10.0
    instruction: str | None = None
    permuted: np.ndarray | None = None
    permuted_actions: np.ndarray | None = None
    permuted_episodes: list[str] = field(default_factory=list)
    reconstruction: np.ndarray | None = None
    action_names: list[str] = field(default_factory=list)
    teacher_forced: bool = False
    trained_on: bool = False
    repeats: np.ndarray | None = None
    truth_repeats: np.ndarray | None = None

    @property
    def pred(self) -> np.ndarray:
        """The first sample, uint8 ``[1 + n, H, W, 3]``."""
        return self.samples[0]

    @property
    def horizon(self) -> int:
        """n, imagined frames."""
        return self.samples.shape[1] - 1

    @property
    def given(self) -> np.ndarray:
        """The last given frame, uint8 ``[H, W, 3]``."""
        return self.samples[0, 0]


def save(path: Path, prediction: Prediction) -> None:
    """Write atomically; equal predictions give equal bytes."""
    p = prediction
    arrays: dict[str, np.ndarray] = {
        "pred": p.pred,
        "actions": p.actions,
        "frame_index": np.array(p.frame_index, np.int64),
        "fps": np.array(p.fps, np.float64),
        "episode": np.array(p.episode),
        "instruction": np.array(p.instruction or ""),
    }
    if p.truth is not None:
        arrays["truth"] = p.truth
    if len(p.samples) > 1:
        arrays["samples"] = p.samples
    if p.permuted is not None and p.permuted_actions is not None:
        arrays |= {"permuted": p.permuted, "permuted_actions": p.permuted_actions}
        arrays["permuted_episodes"] = np.array(p.permuted_episodes)
    if p.action_names:
        arrays["action_names"] = np.array(p.action_names)
    if p.reconstruction is not None:
        arrays["reconstruction"] = p.reconstruction
    arrays |= {key: np.array(True) for key in MARKS if getattr(p, key)}
    arrays |= {key: value for key in ("repeats", "truth_repeats") if (value := getattr(p, key)) is not None}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load(path: Path) -> Prediction:
    """Read one file; one that only holds ``pred``, ``truth`` and ``actions`` (written by others) is enough.

    Raises:
        UserError: not such a file, or shapes that do not belong together.
    """
    data = _arrays(path)
    missing = [key for key in ("pred", "truth") if key not in data]
    if missing:
        raise UserError(f"{path} has no '{missing[0]}'", "worldsim infer DATA --set save_frames=true")
    pred, truth = data["pred"], data["truth"]
    if pred.shape != truth.shape or pred.ndim != 4 or pred.shape[-1] != 3 or len(pred) < 2 or pred.dtype != np.uint8:
        raise UserError(f"{path}: pred {pred.shape} {pred.dtype} and truth {truth.shape} must be uint8 [1 + n, H, W, 3]")
    if not np.array_equal(pred[0], truth[0]):
        raise UserError(f"{path}: the first frame of pred and of truth is the given one and must be equal")
    return Prediction(
        episode=str(data.get("episode", path.stem)),
        samples=data.get("samples", pred[None]),
        actions=data.get("actions", np.zeros((len(pred) - 1, 1, 0), np.float32)),
        truth=truth,
        frame_index=int(data.get("frame_index", 0)),
        fps=float(data.get("fps", 10.0)),
        instruction=str(data["instruction"]) if str(data.get("instruction", "")) else None,
        permuted=data.get("permuted"),
        permuted_actions=data.get("permuted_actions"),
        permuted_episodes=[str(name) for name in data.get("permuted_episodes", [])],
        reconstruction=data.get("reconstruction"),
        action_names=[str(name) for name in data.get("action_names", [])],
        teacher_forced=bool(data.get("teacher_forced", False)),
        trained_on=bool(data.get("trained_on", False)),
        repeats=data.get("repeats"),
        truth_repeats=data.get("truth_repeats"),
    )


def marks(path: Path) -> set[str]:
    """Which of ``teacher_forced`` and ``trained_on`` hold for a file; no frame is read."""
    return {key for key, value in _arrays(path, MARKS).items() if value}


def _arrays(path: Path, keys: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file; those of ``keys`` that are there, or all."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if keys is None or key in keys}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is no file of predicted frames: it is damaged, or holds more than arrays") from error


def find(folder: Path) -> list[Path]:
    """The files of ``folder`` or of its ``frames/``, sorted by name."""
    for place in (folder / "frames", folder):
        found = sorted(p for p in place.glob("*.npz") if not p.name.startswith("."))
        if found:
            return found
    raise UserError(
        f"{folder} holds no predicted frames (frames/<episode>.npz)",
        "worldsim infer DATA --set save_frames=true",
    )


def file_names(episodes: list[str]) -> dict[str, str]:
    """Episode id -> a name that any file system takes; ids that would collide get their position appended."""
    plain = {episode: re.sub(r"[^\w.-]+", "_", episode) for episode in episodes}
    taken = list(plain.values())
    return {e: name if taken.count(name) == 1 else f"{name}-{k}" for k, (e, name) in enumerate(plain.items())}
