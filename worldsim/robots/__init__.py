"""Robots to read and to move: any of LeRobot's, and a fake one; how a loop keeps time, and what keeps it safe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from worldsim.core.types import ActionSpec


class Body(Protocol):
    """What the loop drives: a robot, or a world model in its place. The numbers are those of an ``Environment``.

    Attributes:
        kind: its type, for people. cameras: name -> (height, width). at: for each action entry, the state entry that
            reports its position; None where there is none.
    """

    kind: str
    fps: float
    state_names: tuple[str, ...]
    action_spec: ActionSpec
    at: tuple[int, ...] | None

    @property
    def cameras(self) -> dict[str, tuple[int, int]]: ...

    @property
    def task_description(self) -> str: ...

    @property
    def action_space(self) -> Any: ...

    def connect(self) -> None: ...

    def observe(self) -> dict[str, Any]: ...

    def send(self, row: np.ndarray) -> np.ndarray: ...

    def hold(self, last: np.ndarray | None = None) -> np.ndarray | None: ...

    def release(self) -> bool: ...

    def disconnect(self) -> str | None: ...


def make(
    values: Mapping[str, Any],
    fps: float,
    task: str = "",
    limits: Mapping[str, tuple[float, float]] | None = None,
    discover: str | None = None,
) -> Body:
    """The robot that ``{"type": …, …}`` describes, not connected; see ``worldsim.robots.lerobot``."""
    from worldsim.robots.lerobot import LeRobotArm

    return LeRobotArm.create(values, fps, task, limits, discover)
