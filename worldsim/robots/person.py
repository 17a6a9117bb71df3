"""A person who drives in ``shadow``, through any of LeRobot's teleoperators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from worldsim.core.errors import UserError
from worldsim.robots import _decode
from worldsim.robots.safety import Stopped


class Teleoperator:
    """``{"type": "so100_leader", "port": …}``: rows in the order of the robot's own action names.

    Args:
        names: of the robot's action entries.

    Raises:
        UserError: an unknown type or field, or a device whose actions have other names than the robot's.
    """

    def __init__(self, values: Mapping[str, Any], names: tuple[str, ...], discover: str | None = None) -> None:
        config = _decode.teleop_config(values, discover)
        from lerobot.teleoperators import make_teleoperator_from_config

        try:
            self.device = make_teleoperator_from_config(config)
        except (ImportError, ValueError, TypeError, OSError) as error:
            raise UserError(f"teleop {config.type}: {error}") from error
        self.kind, self.names = str(config.type), names
        missing = [name for name in names if name not in self.device.action_features]
        if missing:
            given = ", ".join(self.device.action_features)
            raise UserError(f"teleop {self.kind} does not drive '{missing[0]}' of the robot; it gives {given}")

    def connect(self) -> None:
        """Never calibrates.

        Raises:
            UserError: it cannot be reached, or has no calibration.
        """
        try:
            self.device.connect(calibrate=False)
            calibrated = self.device.is_calibrated
        except Exception as error:  # drivers raise anything
            raise UserError(f"teleop {self.kind} cannot be connected: {error}", "lerobot-find-port") from error
        if not calibrated:
            self.disconnect()
            raise UserError(
                f"teleop {self.kind} '{self.device.id}' is not calibrated",
                ["lerobot-calibrate", f"--teleop.type={self.kind}"],
            )

    def row(self) -> np.ndarray:
        """What the person wants now, float32 ``[A]``.

        Raises:
            Stopped: the driver raised.
        """
        try:
            action = self.device.get_action()
        except Exception as error:  # drivers raise anything, and the arm must be stopped whatever it is
            raise Stopped("motor", f"teleop {self.kind} failed: {error}") from error
        return np.array([action[name] for name in self.names], np.float32)

    def disconnect(self) -> str | None:
        """Returns what went wrong."""
        try:
            self.device.disconnect()
        except Exception as error:  # as above; the caller says it
            return f"teleop {self.kind}: {error}"
        return None
