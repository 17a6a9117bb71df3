"""Any robot that LeRobot knows, by type and config, with the face of an environment: what its numbers mean, what it sees.

Nothing is sent by reading it. A driver may raise anything; whatever it raises leaves here as a reason to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from worldsim.core.errors import UserError, did_you_mean
from worldsim.core.registry import register
from worldsim.core.types import ActionSpec
from worldsim.robots import _decode
from worldsim.robots.safety import Stopped, positions

CARD = {
    "title": "Any robot of LeRobot's: so100, so101, koch_follower, lekiwi, …, and plugins",
    "source": "https://github.com/huggingface/lerobot",
    "size": "0",
    "license": "Apache-2.0",
}
STEPS_PER_TURN = 4095
"""Of an STS3215 motor, less one. source: lerobot 0.6.1 motors/motors_bus.py, ``_normalize``."""
Limits = Mapping[str, tuple[float, float]]


@register("robots")
class LeRobotArm:
    """A LeRobot robot and what its numbers mean.

    Args:
        robot: a ``lerobot.robots.Robot``, not connected. fps: steps per second, Hz. task: in words. limits: joint -> (least,
            greatest) target, for policies that ask how far they may go; the robot's own where it knows them.

    Attributes:
        kind: LeRobot's type. cameras: name -> (height, width). state_names, action_spec, task_description: see
            :class:`~worldsim.core.protocols.Environment`.
    """

    def __init__(self, robot: Any, fps: float, task: str = "", limits: Limits | None = None) -> None:
        self.robot, self.fps, self.task_description = robot, float(fps), task
        self.kind = str(robot.config.type) if hasattr(robot, "config") else robot.name
        features = robot.observation_features
        self.cameras = {name: (int(f[0]), int(f[1])) for name, f in features.items() if _is_picture(f)}
        self.state_names = tuple(name for name, f in features.items() if f is float)
        self.names = tuple(robot.action_features)
        self.action_spec = meaning(robot, self.names, self.fps)
        self.at = positions(self.names, self.state_names)
        self._limits = limits or {}

    @classmethod
    def create(
        cls,
        values: Mapping[str, Any],
        fps: float,
        task: str = "",
        limits: Limits | None = None,
        discover: str | None = None,
    ) -> LeRobotArm:
        """``{"type": "so100", "port": "/dev/ttyACM0", "cameras": {…}}``; builds the robot without connecting it.

        Raises:
            UserError: an unknown type or field, a wrong value, or a library that LeRobot needs for it.
        """
        config = _decode.robot_config(values, discover)
        from lerobot.robots import make_robot_from_config

        try:
            robot = make_robot_from_config(config)
        except ImportError as error:
            raise UserError(f"robot {config.type}: {error}", _extra(str(error))) from error
        except (ValueError, TypeError, OSError) as error:
            raise UserError(f"robot {config.type}: {error}", _extra(str(error))) from error
        return cls(robot, fps, task, limits)

    @classmethod
    def tiny(cls) -> LeRobotArm:
        """The fake robot, small."""
        from worldsim.robots.fake import Fake

        return cls(Fake.tiny(), 10.0)

    @property
    def action_space(self) -> Any:
        """A ``gymnasium.spaces.Box`` of targets, for policies that ask how far they may go.

        Raises:
            UserError: neither the robot nor the user says.
        """
        import gymnasium

        known = own_limits(self.robot)
        for joint, (low, high) in self._limits.items():
            key = joint if joint in self.names else f"{joint}.pos"
            if key not in self.names:
                raise UserError(f"limits names no joint '{joint}'{did_you_mean(joint, self.names)}")
            if not low < high:
                raise UserError(f"limits.{joint} = [{low:g}, {high:g}]: the least must be below the greatest")
            known[key] = (float(low), float(high))
        for name in self.names:
            if name not in known:
                example = f'--set limits="{{{name.removesuffix(".pos")}: [-20, 20]}}"'
                raise UserError(f"nothing says how far '{name}' of {self.kind} may go: {example}, for every joint")
        low, high = np.array([known[name] for name in self.names], np.float32).T
        return gymnasium.spaces.Box(low, high, dtype=np.float32)

    def connect(self) -> None:
        """Open the bus and the cameras. Never calibrates: that asks questions and moves joints.

        Raises:
            UserError: it cannot be reached, or has no calibration; it is disconnected again.
        """
        try:
            self.robot.connect(calibrate=False)
            calibrated = self.robot.is_calibrated
        except Exception as error:  # drivers raise anything; whatever it is, nothing may stay connected
            self.disconnect()
            raise UserError(f"robot {self.kind} cannot be connected: {_said(error)}", "lerobot-find-port") from error
        if not calibrated:
            self.disconnect()
            port = getattr(getattr(self.robot, "config", None), "port", None)
            known = {"type": self.kind, "port": port, "id": self.robot.id}
            raise UserError(
                f"robot {self.kind} '{self.robot.id}' is not calibrated ({self.robot.calibration_fpath} says nothing, or "
                "something else than its motors)",
                ["lerobot-calibrate", *(f"--robot.{key}={value}" for key, value in known.items() if value)],
            )

    def observe(self) -> dict[str, Any]:
        """``pixels`` {camera: uint8 ``[H, W, 3]``, its own memory}, ``agent_pos`` float32 ``[S]``, ``task``.

        Raises:
            Stopped: the driver raised, or a camera gave nothing for too long.
        """
        seen = self._ask("reading", self.robot.get_observation)
        return {
            "pixels": {name: np.array(seen[name], np.uint8) for name in self.cameras},
            "agent_pos": np.array([seen[name] for name in self.state_names], np.float32),
            "task": self.task_description,
        }

    def send(self, row: np.ndarray) -> np.ndarray:
        """Send one action row ``[A]``; returns the row that the robot says it took.

        Raises:
            Stopped: the driver raised.
        """
        action = {name: float(value) for name, value in zip(self.names, row)}
        taken = self._ask("sending", lambda: self.robot.send_action(action))
        return np.array([taken.get(name, action[name]) for name in self.names], np.float32)

    def hold(self, last: np.ndarray | None = None) -> np.ndarray | None:
        """Make the place where every joint is its target, as far as that is known; returns it.

        Args:
            last: the state that was seen last, ``[S]``: a camera that gives nothing must not keep the arm from being held.

        Raises:
            Stopped: the motors cannot be reached.
        """
        if self.at is None or self.action_spec.mode == "delta":
            return None
        try:
            state = self.observe()["agent_pos"]
        except Stopped:
            if last is None:
                raise
            state = last
        return self.send(state[list(self.at)])

    def release(self) -> bool:
        """Take the torque off so that a person can move the arm; False where the robot has no such switch."""
        off = getattr(getattr(self.robot, "bus", None), "disable_torque", None)
        if off is None:
            return False
        self._ask("releasing", off)
        return True

    def disconnect(self) -> str | None:
        """Take the torque off and close everything. Returns what went wrong, which must not hide why it was called.

        LeRobot's robots refuse to disconnect when one of their cameras is gone; then each part is closed by itself.
        """
        if not self.robot.is_connected and not self._open_parts():
            return None
        try:
            self.robot.disconnect()
        except Exception as error:  # as above; the caller says it
            problems = [_said(error), *(_closed(part, self.robot) for part in self._open_parts())]
            return "; ".join(problem for problem in problems if problem)
        return None

    def _ask(self, doing: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # drivers raise anything, and the arm must be stopped whatever it is
            by = "camera" if isinstance(error, TimeoutError) or self._is_camera(str(error)) else "motor"
            raise Stopped(by, f"robot {self.kind} failed while {doing}: {_said(error)}") from error

    def _is_camera(self, text: str) -> bool:
        """Whether one of LeRobot's cameras says this: they begin with their own name."""
        cameras = getattr(self.robot, "cameras", None)
        return isinstance(cameras, Mapping) and any(str(camera) in text for camera in cameras.values())

    def _open_parts(self) -> list[Any]:
        """The motor bus and the cameras, as far as they are connected; the bus first."""
        cameras = getattr(self.robot, "cameras", None)
        parts = [getattr(self.robot, "bus", None), *(cameras.values() if isinstance(cameras, Mapping) else ())]
        return [part for part in parts if getattr(part, "is_connected", False)]


def meaning(robot: Any, names: tuple[str, ...], fps: float) -> ActionSpec:
    """What an action row of a LeRobot robot means, as far as its config and names tell.

    ``.pos`` entries are absolute joint targets. Units are known for SO arms and the fake: degrees (or -100 to 100 with
    ``use_degrees=false``), the gripper in percent, 100 is open; elsewhere they are ``?``.
    """
    config = getattr(robot, "config", None)
    grippers = [k for k, name in enumerate(names) if "gripper" in name]
    joints = all(name.endswith(".pos") for name in names)
    known = joints and (robot.name in ("so_follower", "fake"))
    unit = "deg" if getattr(config, "use_degrees", True) else "±100"
    return ActionSpec(
        names=names,
        units=tuple("?" if not known else "%" if k in grippers else unit for k in range(len(names))),
        mode="absolute" if joints else "unknown",
        space="joint" if joints else "unknown",
        frame="base" if joints else "unknown",
        gripper=grippers[0] if known and grippers else None,
        gripper_open=100.0 if known and grippers else None,
        rate=fps,
    )


def own_limits(robot: Any) -> dict[str, tuple[float, float]]:
    """Action name -> (least, greatest), from a calibrated SO arm's recorded ranges, or the fake's; empty for others."""
    if robot.name == "fake":
        from worldsim.robots.fake import LIMITS

        return {f"{joint}.pos": limits for joint, limits in LIMITS.items()}
    if robot.name != "so_follower":
        return {}
    out: dict[str, tuple[float, float]] = {}
    for joint, known in robot.calibration.items():
        half = (known.range_max - known.range_min) / 2 * 360 / STEPS_PER_TURN if robot.config.use_degrees else 100.0
        out[f"{joint}.pos"] = (0.0, 100.0) if joint == "gripper" else (-half, half)
    return out


def _is_picture(feature: Any) -> bool:
    return isinstance(feature, tuple) and len(feature) == 3 and feature[2] == 3


def _closed(part: Any, robot: Any) -> str | None:
    """Close one part; what went wrong, or None. The bus is told about the torque as the robot would tell it."""
    told = [getattr(robot.config, "disable_torque_on_disconnect", True)] if part is getattr(robot, "bus", None) else []
    try:
        part.disconnect(*told)
    except Exception as error:  # as above
        return _said(error)
    return None


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _extra(text: str) -> str | None:
    """``pip install 'lerobot[feetech]'`` out of LeRobot's own sentence."""
    begin = text.find("pip install")
    return text[begin:].split(" (or")[0].rstrip(")") if begin >= 0 else None
