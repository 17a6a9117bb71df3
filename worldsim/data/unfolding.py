"""A dream while it unfolds: the frames seen so far, the robot's state as far as it can be known, rows still under way.

Both interaction loops that imagine use it: ``infer`` with a policy (many scenes at a time) and the environment ``dream``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from worldsim.core.types import Episode
from worldsim.data.cameras import share_of
from worldsim.data.scenes import Scene, SceneSpec, scene_seed


@dataclass(frozen=True)
class Start:
    """What a dream begins with besides its frames.

    Attributes:
        states: the robot's, recorded up to the given frame, ``[T0, S]``; None where the dataset has none.
        pending: rows that were sent before the given frame and act after it, ``[delay * r, A]``.
    """

    states: np.ndarray | None
    pending: np.ndarray

    @classmethod
    def of(cls, episode: Episode, spec: SceneSpec, stride: int) -> Start:
        first, past = spec.first(), spec.past(stride)
        sent = np.zeros((0, 0), np.float32) if episode.actions is None else episode.actions[first - spec.delay : first]
        return cls(None if episode.states is None else episode.states[past], np.asarray(sent, np.float32))


@dataclass
class Unfolding:
    """
    Attributes:
        scene: where it began. cameras: what it shows, from top to bottom. seed: the run's.
        follows: whether the robot's state after a step is the action row; else it is the recorded start for ever.
        frames: ``[T, H, W, 3]``, recorded ones first. states: ``[T, S]`` or None.
        rows: sent, but not acted yet, ``[A]`` each. delay: how many always are under way between a command and its effect.
    """

    scene: Scene
    cameras: list[str]
    follows: bool
    seed: int
    frames: np.ndarray
    states: np.ndarray | None
    rows: list[np.ndarray]
    delay: int

    @classmethod
    def begin(cls, scene: Scene, start: Start, cameras: list[str], *, follows: bool, seed: int) -> Self:
        first = (scene.context, start.states, list(start.pending), len(start.pending))
        return cls(scene, cameras, follows, seed, *first)

    def observation(self) -> dict[str, Any]:
        """What ``core.protocols.Environment`` gives, and besides it all frames and states so far for policies that look
        back: ``frames`` (camera -> ``[T, H, W, 3]``), ``states`` (``[T, S]``), ``task``."""
        each = share_of("+".join(self.cameras), len(self.cameras), self.frames.shape[1])
        views = {name: self.frames[:, k * each : (k + 1) * each] for k, name in enumerate(self.cameras)}
        out: dict[str, Any] = {
            "pixels": {name: view[-1] for name, view in views.items()},
            "frames": views,
            "task": self.scene.instruction or "",
        }
        if self.states is not None:
            out |= {"agent_pos": self.states[-1], "states": self.states}
        return out

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` rows that act, ``[count, A]``."""
        taken, self.rows = self.rows[:count], self.rows[count:]
        return np.stack(taken)

    def watch(self, frames: np.ndarray, last_rows: np.ndarray) -> None:
        """Add imagined frames ``[n, H, W, 3]`` and the last row before each, ``[n, A]``."""
        self.frames = np.concatenate([self.frames, frames])
        if self.states is not None:
            more = last_rows if self.follows else np.repeat(self.states[-1:], len(frames), axis=0)
            self.states = np.concatenate([self.states, more.astype(self.states.dtype)])

    def noise(self, turn: int) -> int:
        """The seed of the world model's noise, new at every turn."""
        return scene_seed(self.seed, f"{self.scene.episode}/turn {turn}", self.scene.frame_index)
