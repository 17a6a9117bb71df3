"""Policy x environment -> episodes: one loop, one recorder, one episode in memory.

An episode of n steps has n + 1 frames and states and n actions: ``actions[t]`` is what was sent after frame ``t`` was
seen and before frame ``t + 1``. The same seed gives the same episode, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldsim.core.errors import UserError
from worldsim.core.protocols import Environment, Policy, SupportsObserve
from worldsim.core.types import CameraInfo, DatasetCard, Episode, FrameStream


@dataclass
class Recorder:
    """Collects what was seen and sent, and hands it over as an :class:`Episode`.

    Used by every interaction loop: simulated here, imagined or real elsewhere. Call ``see`` once per frame and ``sent``
    between two of them.

    Attributes:
        solved_at: actions that were sent until ``is_success`` was first seen; None where it never was.
    """

    pixels: dict[str, list[np.ndarray]] = field(default_factory=dict)
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    solved_at: int | None = None

    @property
    def success(self) -> bool:
        """Whether the task was solved at any step."""
        return self.solved_at is not None

    def see(self, observation: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        """One observation: ``pixels`` {camera: uint8 ``[H, W, 3]``}, ``agent_pos`` ``[S]``; ``info["is_success"]``."""
        for camera, frame in observation["pixels"].items():
            self.pixels.setdefault(camera, []).append(np.array(frame, np.uint8))
        self.states.append(np.array(observation["agent_pos"], np.float32))
        if self.solved_at is None and info.get("is_success", False):
            self.solved_at = len(self.actions)

    def sent(self, action: np.ndarray) -> None:
        self.actions.append(np.array(action, np.float32))

    def episode(self, *, id: str, index: int, source: str, fps: float, instruction: str, **provenance: Any) -> Episode:
        """What was recorded; T frames and T - 1 actions."""
        if len(self.actions) != len(self.states) - 1:
            raise ValueError(f"{len(self.states)} frames need {len(self.states) - 1} actions, got {len(self.actions)}")
        return Episode(
            id=id,
            index=index,
            source=source,
            fps=fps,
            frames={name: FrameStream.of(np.stack(self.pixels[name])) for name in sorted(self.pixels)},
            actions=np.stack(self.actions),
            states=np.stack(self.states),
            instruction=instruction,
            success=self.success,
            provenance={"original_id": id, **provenance},
        )


def rollout(env: Environment, policy: Policy, *, seed: int, steps: int, stop_on_success: bool = False) -> Recorder:
    """Act for ``steps`` steps, or until the environment truncates (or, if wanted, the task is solved).

    A policy's chunk is carried out whole before it is asked again; one that looks back is shown the frames in between.
    Reaching the goal does not end the episode unless ``stop_on_success``: for a world model what happens afterwards is as
    good a lesson.
    """
    if steps < 1:
        raise UserError(f"an episode needs at least one step, not {steps}")
    recorder = Recorder()
    observation, info = env.reset(seed=seed)
    policy.reset(seed)
    recorder.see(observation, info)
    chunk: list[np.ndarray] = []
    for _ in range(steps):
        shown = {**observation, "task": env.task_description}
        if not chunk:
            chunk = list(policy.act(shown))
        elif isinstance(policy, SupportsObserve) and policy.looks_back:
            policy.observe(shown)
        action = chunk.pop(0)
        observation, _, _, truncated, info = env.step(action)
        recorder.sent(action)
        recorder.see(observation, info)
        if truncated or (stop_on_success and recorder.success):
            break
    return recorder


class SimulatedSource:
    """An :class:`~worldsim.core.protocols.EpisodeSource` whose episodes are simulated when they are asked for.

    Args:
        env: the environment; closed with the source.
        policies: who acts; episode i is acted by policy i modulo their number, so that a dataset can mix an expert with
            noise. Name -> policy.
        seeds: one per episode. Episode i depends on ``seeds[i]``, its policy and ``steps`` alone.
        steps: actions per episode; an episode has one frame more.
        name: the dataset's name.
    """

    def __init__(
        self, env: Environment, policies: Mapping[str, Policy], seeds: Sequence[int], steps: int, name: str = "simulated"
    ) -> None:
        if not policies:
            raise UserError("a simulated dataset needs at least one policy")
        self.env, self.policies, self.seeds, self.steps = env, dict(policies), list(seeds), steps
        observation, _ = env.reset(seed=self.seeds[0] if self.seeds else 0)
        pictures = observation["pixels"]
        self.card = DatasetCard(
            name=name,
            format="simulated",
            fps=float(env.fps),
            cameras=tuple(CameraInfo(camera, *pictures[camera].shape[:2]) for camera in sorted(pictures)),
            actions=env.action_spec,
            state_names=tuple(env.state_names),
        )

    def __len__(self) -> int:
        return len(self.seeds)

    def ids(self) -> list[str]:
        return [f"episode_{i:06d}" for i in range(len(self.seeds))]

    def episode(self, index: int) -> Episode:
        actor = list(self.policies)[index % len(self.policies)]
        seed = self.seeds[index]
        recorder = rollout(self.env, self.policies[actor], seed=seed, steps=self.steps)
        return recorder.episode(
            id=self.ids()[index],
            index=index,
            source=f"{self.card.name}: seed {seed}, {actor}",
            fps=self.card.fps,
            instruction=self.env.task_description,
            seed=seed,
            policy=actor,
        )

    def close(self) -> None:
        self.env.close()
