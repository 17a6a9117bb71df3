"""The handful of words that every room uses.

Legend for shapes, used in names and docstrings everywhere: ``B`` batch, ``T`` frames, ``C`` channels, ``H W`` pixels,
``h w`` latent grid, ``L`` tokens, ``D`` width, ``A`` action dim, ``S`` state dim, ``N`` samples in a group.

The one convention about time: ``actions[t]`` acts between frame ``t`` and frame ``t + 1``, in physical units,
unnormalised on disk. An :class:`Episode` keeps the rows its source recorded: ``T`` for LeRobot, HDF5, npz and RLDS,
``T - 1`` for Bridge; a last row of ``T`` has no successor. Only ``worldsim.data.windows`` cuts F frames with F - 1 actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from worldsim.core.errors import UserError, as_typed

BLOCK_FRAMES = 16
"""Frames handed over at once when a camera is streamed: large enough to amortise calls, small enough for memory."""


class FrameStream:
    """The frames of one camera of one episode, decoded when asked for: uint8, ``[T, H, W, 3]``, RGB.

    Args:
        num_frames: T as declared by the source; ``blocks`` raises if the real number differs.
        height, width: the size of what ``blocks`` yields, in pixels.
        blocks: starts a fresh sequential pass and yields uint8 arrays ``[n, H, W, 3]``, n >= 1, in order.
        rows: random access, ``rows(indices) -> [len(indices), H, W, 3]``; by default a sequential pass is filtered.
        encoded: (optional) the source's own file and time range of this camera, for writers that can copy packets.
    """

    def __init__(
        self,
        num_frames: int,
        height: int,
        width: int,
        blocks: Callable[[], Iterator[np.ndarray]],
        rows: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.num_frames, self.height, self.width = num_frames, height, width
        self._blocks, self._rows = blocks, rows

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.num_frames, self.height, self.width, 3)

    def __len__(self) -> int:
        return self.num_frames

    def blocks(self) -> Iterator[np.ndarray]:
        """One sequential pass: uint8 ``[n, H, W, 3]`` blocks in order."""
        return self._blocks()

    def read(self) -> np.ndarray:
        """All frames at once, uint8 ``[T, H, W, 3]``. Only for code that knows the episode is short."""
        out = np.empty(self.shape, np.uint8)
        at = 0
        for block in self.blocks():
            out[at : at + len(block)] = block
            at += len(block)
        return out[:at]

    def rows(self, indices: np.ndarray | list[int]) -> np.ndarray:
        """Frames at ``indices`` (any order, repeats allowed), uint8 ``[len(indices), H, W, 3]``."""
        wanted = np.asarray(indices, np.int64)
        if self._rows is not None:
            return self._rows(wanted)
        out = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        at, last = 0, int(wanted.max(initial=-1))
        for block in self.blocks():
            for position in np.nonzero((wanted >= at) & (wanted < at + len(block)))[0]:
                out[position] = block[wanted[position] - at]
            at += len(block)
            if at > last:
                break
        if at <= last:
            raise UserError(f"frame {last} was asked for but the camera has only {at} frames")
        return out

    @classmethod
    def of(cls, frames: np.ndarray) -> FrameStream:
        """A stream over frames already in memory (uint8 ``[T, H, W, 3]``)."""

        def blocks() -> Iterator[np.ndarray]:
            for at in range(0, len(frames), BLOCK_FRAMES):
                yield frames[at : at + BLOCK_FRAMES]

        return cls(len(frames), frames.shape[1], frames.shape[2], blocks, lambda indices: frames[indices])


@dataclass(frozen=True)
class ActionSpec:
    """What one action row means. It travels with every dataset, checkpoint, server and robot; a mismatch is refused.

    Attributes:
        names: one name per dimension, ``A`` of them.
        units: one unit per dimension (``m``, ``rad``, ``deg``, ``px``, ``1`` for none, ``?`` for unknown).
        mode: whether a row is a target (``absolute``) or a change (``delta``).
        space: ``joint``, ``end-effector``, ``planar`` or ``unknown``.
        frame: the frame of reference of end-effector actions (``base``, ``gripper``, ``image``, ``unknown``).
        gripper: index of the gripper channel, or None.
        gripper_open: the value that means open (1.0 or 0.0), or None when unknown or when there is no gripper.
        rate: rows per second, Hz.
        delay: rows between a command and its visible effect.
        scale: what rows were multiplied by before they were stored, one per dimension; None when they are physical.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    mode: Literal["absolute", "delta", "unknown"] = "unknown"
    space: Literal["joint", "end-effector", "planar", "unknown"] = "unknown"
    frame: str = "unknown"
    gripper: int | None = None
    gripper_open: float | None = None
    rate: float = 10.0
    delay: int = 0
    scale: tuple[float, ...] | None = None

    @property
    def dim(self) -> int:
        return len(self.names)

    @property
    def named(self) -> bool:
        """Whether the source gave names; ``action_0 …`` stands for none."""
        return self.names != tuple(f"action_{i}" for i in range(self.dim))

    @classmethod
    def unknown(cls, dim: int, rate: float, names: tuple[str, ...] | None = None) -> ActionSpec:
        names = names or tuple(f"action_{i}" for i in range(dim))
        return cls(names=names, units=("?",) * dim, rate=rate)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ActionSpec:
        lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**lists)

    def require(self, other: ActionSpec, *, mine: str, theirs: str) -> None:
        """Refuse ``other`` when it cannot mean the same rows. ``unknown`` and rows without names agree with anything of
        their width; rate is compared too."""
        for key in ("dim", "names", "mode", "space", "frame", "gripper", "gripper_open", "rate", "scale"):
            if key == "names" and not (self.named and other.named):
                continue
            a, b = getattr(self, key), getattr(other, key)
            if a != b and "unknown" not in (a, b) and None not in (a, b):
                raise UserError(f"the actions of {mine} and of {theirs} differ in {key}: {a} and {b}")


@dataclass(frozen=True)
class CameraInfo:
    """One camera of a dataset as its files really are: pixels, frames per second."""

    name: str
    height: int
    width: int


@dataclass
class Episode:
    """One recorded trajectory, streamed: numbers in memory, frames decoded on demand.

    Attributes:
        id: the source's own name of it, unique in the dataset (``episode_000003``, ``13``, …).
        index: its position in the source, from 0.
        source: the file a user would open to look at it.
        instruction: the task in words; None when the source has none.
        fps: frames per second.
        success: whether it succeeded; None when the source does not say.
        split: the source's own split of it (``train``, ``val``, ``test``); None when the source has none.
        frames: camera name -> FrameStream, sorted by name.
        actions: ``[T, A]`` or ``[T - 1, A]`` in the source's dtype; None when absent.
        states: ``[T, S]`` in the source's dtype; None when absent.
        extras: further per-frame columns of T rows (rewards, annotations, gripper states, …), as recorded.
        provenance: where it came from: format, original ids, notes about this episode.
    """

    id: str
    index: int
    source: str
    fps: float
    frames: dict[str, FrameStream]
    actions: np.ndarray | None = None
    states: np.ndarray | None = None
    instruction: str | None = None
    success: bool | None = None
    split: str | None = None
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def num_frames(self) -> int:
        return next(iter(self.frames.values())).num_frames

    def only(self, cameras: list[str]) -> Episode:
        return replace(self, frames={name: self.frames[name] for name in cameras})


@dataclass
class DatasetCard:
    """What holds for a whole dataset. Written beside the data as ``worldsim.json`` (see ``worldsim.data.card``).

    Attributes:
        name: short name, used for output folders.
        format: the registered format of the folder it describes.
        fps: frames per second of the episodes (an episode's own ``fps`` wins).
        cameras: what the files really hold, sorted by name.
        actions: the meaning of action rows; None when the dataset has none.
        state_names: one name per state dimension; None when the dataset has no states.
        splits: split name -> episode ids, the dataset's own; None when it has none.
        robot: robot type as named by the source, or None.
        notes: oddities that were found, one sentence each.
        extras: names of per-frame columns the episodes carry.
    """

    name: str
    format: str
    fps: float
    cameras: tuple[CameraInfo, ...]
    actions: ActionSpec | None = None
    state_names: tuple[str, ...] | None = None
    splits: dict[str, list[str]] | None = None
    robot: str | None = None
    notes: list[str] = field(default_factory=list)
    extras: tuple[str, ...] = ()

    @property
    def camera_names(self) -> list[str]:
        return [camera.name for camera in self.cameras]


@dataclass
class Result:
    """What a command reports: numbers, remarks, and what to type next (words, which are quoted, or text)."""

    metrics: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    next: str | Sequence[object] | None = None
    summary: str = ""

    def __post_init__(self) -> None:
        self.next = as_typed(self.next)


@dataclass(frozen=True)
class PolicyNeeds:
    """What a learned policy was trained on: what it must be shown, and what its rows mean. A mismatch is refused.

    Attributes:
        cameras: camera name -> (height, width) of the frames it was trained on, px; it may resize.
        state_names: one name per entry of ``agent_pos`` that it reads; empty when it reads none.
        action_spec: what its action rows mean.
        fps: observations per second that it was trained on, Hz.
        low, high: the 1 % and 99 % quantiles of its training actions, ``[A]``, physical units; None when unknown.
    """

    cameras: dict[str, tuple[int, int]]
    state_names: tuple[str, ...]
    action_spec: ActionSpec
    fps: float
    low: np.ndarray | None = None
    high: np.ndarray | None = None
