"""An environment in a robot's place: a dream, driven by the loop that drives an arm."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldsim.core.protocols import Environment
from worldsim.robots.safety import positions


class SimulatedBody:
    """A ``worldsim.robots.Body`` over an :class:`~worldsim.core.protocols.Environment`; ``connect`` begins its episode.

    Args:
        seed: of the episode. kind: for people.
    """

    def __init__(self, env: Environment, seed: int, kind: str = "dream", task: str = "") -> None:
        self.env, self.seed, self.kind, self.task = env, seed, kind, task
        self.fps, self.action_spec, self.state_names = float(env.fps), env.action_spec, tuple(env.state_names)
        self.action_space = env.action_space
        self.at = positions(self.action_spec.names, self.state_names)
        self.connect()

    @property
    def task_description(self) -> str:
        return self.task or self.env.task_description

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        height_width = {name: frame.shape[:2] for name, frame in self.seen["pixels"].items()}
        return {name: (int(size[0]), int(size[1])) for name, size in height_width.items()}

    def connect(self) -> None:
        self.seen, _ = self.env.reset(seed=self.seed)

    def observe(self) -> dict[str, Any]:
        return {**self.seen, "task": self.task_description}

    def send(self, row: np.ndarray) -> np.ndarray:
        """Act, and see what comes of it at the next :meth:`observe`."""
        self.seen = self.env.step(row)[0]
        return row

    def hold(self, last: np.ndarray | None = None) -> np.ndarray | None:
        return None

    def release(self) -> bool:
        return False

    def disconnect(self) -> str | None:
        self.env.close()
        return None
