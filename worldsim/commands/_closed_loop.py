"""Policies that choose the actions of imagined episodes: asked beforehand (open loop), or acting in the dream (closed loop).

In the dream a policy is shown the last imagined frame; its rows drive the world model to the next ones, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from worldsim.core.errors import UserError, again
from worldsim.core.protocols import Policy
from worldsim.core.types import Episode
from worldsim.data import scenes
from worldsim.data.scenes import Scene, SceneSpec
from worldsim.data.unfolding import Start, Unfolding


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
        dreams = [actor.dream for actor in actors]
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
            count = min(frames - done, *((len(dream.rows) - dream.delay) // stride for dream in dreams))
            rows = np.stack([dream.take(count * stride).reshape(count, stride, -1) for dream in dreams])
            context = np.stack([dream.frames[-self.history :] for dream in dreams])
            new = rollout(context, rows, [dream.noise(turn) for dream in dreams])
            for dream, frame, own in zip(dreams, new, rows):
                dream.watch(frame, own[:, -1])
            made.append(new)
            driven.append(rows)
            turn += 1
        return np.concatenate(made, axis=1), np.concatenate(driven, axis=1)

    def _actor(self, scene: Scene, start: Start) -> Actor:
        policy = self.make()
        policy.reset(scenes.scene_seed(self.seed, scene.episode, scene.frame_index))
        return Actor(policy, Unfolding.begin(scene, start, self.cameras, follows=self.follows, seed=self.seed))


@dataclass
class Actor:
    """One policy in one dream."""

    policy: Policy
    dream: Unfolding

    def decide(self, stride: int) -> None:
        """Ask the policy until it has sent the rows of one frame more than are under way anyhow."""
        while len(self.dream.rows) - self.dream.delay < stride:
            self.dream.rows.extend(self.policy.act(self.dream.observation()))
