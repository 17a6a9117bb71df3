"""A robot without hardware: six SO-100 joints and two synthetic cameras, as a LeRobot robot that LeRobot's tools drive too.

Frame n of a camera has n painted into its top rows as 16 black or white cells, and shows the arm's joints as bars that
follow the targets at a limited speed. Faults can be asked for, so that every way to stop is tested.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig
from lerobot.utils.errors import DeviceNotConnectedError

from worldsim.core.registry import register

CARD = {
    "title": "A fake SO-100 arm with two synthetic cameras, for trying things without hardware",
    "source": "worldsim",
    "size": "0",
    "license": "Apache-2.0",
}
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
LIMITS = {**dict.fromkeys(JOINTS[:5], (-100.0, 100.0)), "gripper": (0.0, 100.0)}
"""deg; the gripper 0 (closed) to 100 (open). source: lerobot 0.6.1 robots/so_follower."""
BITS = 16


@dataclass
class Faults:
    """What goes wrong, and at which observation (or action, for ``raise_on_send``), counted from 0; -1 is never."""

    freeze_camera: int = -1
    raise_on_read: int = -1
    raise_on_send: int = -1
    sleep_on_read: int = -1
    sleep_seconds: float = 1.0
    raise_on_disconnect: bool = False


@RobotConfig.register_subclass("fake")
@dataclass
class FakeConfig(RobotConfig):
    """
    Attributes:
        height, width: of both cameras, px. cameras: their names. speed: how fast joints follow, units per second.
        hand: joints move by themselves, as if somebody moved the arm. witness: a file to which every call is appended, so
            that another process can be told what happened.
    """

    height: int = 96
    width: int = 128
    cameras: list[str] = field(default_factory=lambda: ["front", "wrist"])
    speed: float = 200.0
    hand: bool = False
    witness: str | None = None
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        """LeRobot checks camera configs here; these cameras are only names."""


@register("robots")
class Fake(Robot):
    """Joint targets in, joint positions and two pictures out."""

    config_class = FakeConfig
    name = "fake"

    def __init__(self, config: FakeConfig) -> None:
        if config.calibration_dir is None:
            config.calibration_dir = Path(tempfile.gettempdir()) / "worldsim-fake"  # LeRobot creates it, and it stays empty
        super().__init__(config)
        self.config = config
        self.connected = False
        self.seen = self.sent = 0
        self.position: np.ndarray = np.zeros(len(JOINTS))
        self.position[-1] = 50.0
        self.target: np.ndarray = self.position.copy()
        self.moved = time.monotonic()
        self.pictures: dict[str, np.ndarray] = {}

    @classmethod
    def tiny(cls) -> Fake:
        return cls(FakeConfig(height=32, width=48))

    @property
    def observation_features(self) -> dict[str, Any]:
        size = (self.config.height, self.config.width, 3)
        return {**self.action_features, **dict.fromkeys(self.config.cameras, size)}

    @property
    def action_features(self) -> dict[str, type]:
        return {f"{joint}.pos": float for joint in JOINTS}

    @property
    def is_connected(self) -> bool:
        return self.connected

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        """There is nothing to calibrate."""

    def configure(self) -> None:
        """There is nothing to configure."""

    def connect(self, calibrate: bool = True) -> None:
        self.connected, self.moved = True, time.monotonic()
        self._witness("connect")

    def disconnect(self) -> None:
        if not self.connected:
            raise DeviceNotConnectedError("the fake robot is not connected")
        self.connected = False
        self._witness("disconnect")
        if self.config.faults.raise_on_disconnect:
            raise ConnectionError("the fake bus did not answer")

    def get_observation(self) -> dict[str, Any]:
        n = self._begin(self.seen)
        self.seen += 1
        faults = self.config.faults
        if n == faults.raise_on_read:
            raise ConnectionError("Failed to sync read 'Present_Position' on ids=[1, 2, 3, 4, 5, 6]")
        if n == faults.sleep_on_read:
            time.sleep(faults.sleep_seconds)
        self._follow()
        if not 0 <= faults.freeze_camera <= n:
            self.pictures = {camera: self._picture(n, k) for k, camera in enumerate(self.config.cameras)}
        joints = {f"{joint}.pos": float(value) for joint, value in zip(JOINTS, self.position)}
        return {**joints, **{camera: picture.copy() for camera, picture in self.pictures.items()}}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """The targets that were taken, after the joints' own limits."""
        n = self._begin(self.sent)
        self.sent += 1
        if n == self.config.faults.raise_on_send:
            raise ConnectionError("Failed to write 'Goal_Position' on ids=[1, 2, 3, 4, 5, 6]")
        self._follow()
        low, high = np.array([LIMITS[joint] for joint in JOINTS]).T
        self.target = np.clip([float(action[f"{joint}.pos"]) for joint in JOINTS], low, high)
        self._witness("send " + " ".join(f"{value:.6g}" for value in self.target))
        return {f"{joint}.pos": float(value) for joint, value in zip(JOINTS, self.target)}

    def _begin(self, count: int) -> int:
        if not self.connected:
            raise DeviceNotConnectedError("the fake robot is not connected")
        return count

    def _follow(self) -> None:
        now = time.monotonic()
        if self.config.hand:
            self.target = 20 * np.sin(now + np.arange(len(JOINTS))) + np.array([0, 0, 0, 0, 0, 50])
        step = self.config.speed * (now - self.moved)
        self.position, self.moved = self.position + np.clip(self.target - self.position, -step, step), now

    def _picture(self, n: int, camera: int) -> np.ndarray:
        """uint8 ``[H, W, 3]``: the number in the top quarter, a bar per joint below it."""
        height, width = self.config.height, self.config.width
        top, column = height // 4, width // len(JOINTS)
        frame = np.full((height, width, 3), (36, 40, 48 + 60 * (camera % 2)), np.uint8)
        for bit in range(BITS):
            frame[:top, bit * (width // BITS) : (bit + 1) * (width // BITS)] = 235 if n >> bit & 1 else 20
        for k, joint in enumerate(JOINTS):
            low, high = LIMITS[joint]
            level = round((height - top - 4) * (self.position[k] - low) / (high - low))
            frame[height - max(level, 1) :, k * column + 2 : (k + 1) * column - 2] = (220 - 25 * k, 90 + 25 * k, 120)
        return frame

    def _witness(self, line: str) -> None:
        if self.config.witness:
            with open(self.config.witness, "a", encoding="utf8") as file:
                file.write(line + "\n")
