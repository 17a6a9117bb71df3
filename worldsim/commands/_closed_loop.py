"""Policies that choose the actions of imagined episodes: asked beforehand (open loop), or acting in the dream (closed loop).

In the dream a policy is shown the last imagined frame; its rows drive the world model to the next ones, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldsim.core.errors import UserError, again
from worldsim.core.protocols import Policy
from worldsim.core.types import Episode
from worldsim.data import scenes
from worldsim.data.cameras import share_of
from worldsim.data.scenes import Scene, SceneSpec


@dataclass(frozen=True)
class OpenLoop:
    """Actions of a policy that looks at nothing, known before anything is imagined."""

    policy: Policy
    seed: int

    def of(self, episode: Episode, spec: SceneSpec, stride: int) -> np.ndarray:
        """``[n, r, A]``; the same for the same seed, episode and start. Rows that were sent before the start act first."""
        self.policy.reset(scenes.scene_seed(self.seed, episode.id, spec.first()))
        rows, needed = list(Start.of(episode, spec, stride).pending), spec.frames * stride
        while len(rows) < needed:
            rows.extend(self.policy.act({}))
        return np.stack(rows[:needed]).reshape(spec.frames, stride, -1)


@dataclass(frozen=True)
class Start:
    """What a policy in the dream begins with.

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


Rollout = Callable[[np.ndarray, np.ndarray, list[int]], np.ndarray]
"""Context ``[B, T0, H, W, 3]``, actions ``[B, n, r, A]`` and seeds -> frames ``[B, n, H, W, 3]``."""


class ClosedLoop:
    """A policy that acts on what the world model imagines.

    Args:
        make: a fresh policy per scene. cameras: what the dream shows, from top to bottom. seed: the run's.
        history: frames that the model wants as context.
        follows: whether the robot's state after a step is the action row; else it is the recorded start for ever.
    """

    def __init__(self, make: Callable[[], Policy], cameras: list[str], seed: int, history: int, follows: bool) -> None:
        self.make, self.cameras, self.seed, self.history, self.follows = make, cameras, seed, history, follows

    def drive(
        self, batch: Sequence[Scene], starts: Sequence[Start], frames: int, stride: int, rollout: Rollout
    ) -> tuple[np.ndarray, np.ndarray]:
        """Frames ``[B, n, H, W, 3]`` and the rows that led to them, ``[B, n, r, A]``."""
        actors = [self._actor(scene, start) for scene, start in zip(batch, starts)]
        if stride > 1 and any(getattr(actor.policy, "looks_back", False) for actor in actors):
            raise UserError(
                f"the policy looks at consecutive frames of the dataset, and the dream shows every {stride}th",
                again(actions="dataset"),
            )
        made: list[np.ndarray] = []
        driven: list[np.ndarray] = []
        turn = 0
        while (done := sum(part.shape[1] for part in made)) < frames:
            for actor in actors:
                actor.decide(stride)
            count = min(frames - done, *((len(actor.rows) - actor.delay) // stride for actor in actors))
            rows = np.stack([actor.take(count * stride).reshape(count, stride, -1) for actor in actors])
            context = np.stack([actor.frames[-self.history :] for actor in actors])
            new = rollout(context, rows, [actor.noise(turn) for actor in actors])
            for actor, frame, own in zip(actors, new, rows):
                actor.watch(frame, own[:, -1])
            made.append(new)
            driven.append(rows)
            turn += 1
        return np.concatenate(made, axis=1), np.concatenate(driven, axis=1)

    def _actor(self, scene: Scene, start: Start) -> Actor:
        policy = self.make()
        policy.reset(scenes.scene_seed(self.seed, scene.episode, scene.frame_index))
        first = (scene.context, start.states, list(start.pending), len(start.pending))
        return Actor(policy, scene, self.cameras, self.follows, self.seed, *first)


@dataclass
class Actor:
    """One policy in one dream: what it has seen so far, and the rows that it has sent but that have not acted yet.

    Attributes:
        frames: ``[T, H, W, 3]``, recorded ones first. states: ``[T, S]`` or None. rows: ``[A]`` each.
        delay: rows that are always under way between a command and its effect.
    """

    policy: Policy
    scene: Scene
    cameras: list[str]
    follows: bool
    seed: int
    frames: np.ndarray
    states: np.ndarray | None
    rows: list[np.ndarray]
    delay: int

    def decide(self, stride: int) -> None:
        """Ask the policy until it has sent the rows of one frame more than are under way anyhow."""
        while len(self.rows) - self.delay < stride:
            self.rows.extend(self.policy.act(self.observation()))

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
        return scenes.scene_seed(self.seed, f"{self.scene.episode}/turn {turn}", self.scene.frame_index)
