"""LeRobot's own config classes from dotted options: registries filled on demand, wrong fields named with the nearest one."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from worldsim.core.errors import UserError, again, did_you_mean, nearest

NEAR = {
    "robot": {
        **dict.fromkeys(("so100", "so100_follower", "sr100"), "so100_follower"),
        **dict.fromkeys(("so101", "so101_follower"), "so101_follower"),
    },
    "teleop": {"so100": "so100_leader", "so101": "so101_leader", "sr100": "so100_leader"},
}
"""Short names. SR100 of the world-modality experiment is the SO-100 arm."""
FAMILY = {
    "so100_follower": "lerobot.robots.so_follower",
    "so101_follower": "lerobot.robots.so_follower",
    "so100_leader": "lerobot.teleoperators.so_leader",
    "so101_leader": "lerobot.teleoperators.so_leader",
    "opencv": "lerobot.cameras.opencv",
    "fake": "worldsim.robots.fake",
}
"""Where a type registers itself; of any other all of LeRobot's families are imported, then plugins."""


def robot_config(values: Mapping[str, Any], discover: str | None = None) -> Any:
    """``{"type": "so100", "port": …}`` -> a ``lerobot.robots.RobotConfig``.

    Args:
        discover: a package that registers further types, as LeRobot's ``--robot.discover_packages_path``.

    Raises:
        UserError: an unknown type or field, a missing or a wrong value, by its key; or LeRobot's extra is not installed.
    """
    from lerobot.robots import RobotConfig

    return _decoded(RobotConfig, "robot", values, "lerobot.robots", discover)


def teleop_config(values: Mapping[str, Any], discover: str | None = None) -> Any:
    """``{"type": "so100_leader", "port": …}`` -> a ``lerobot.teleoperators.TeleoperatorConfig``; errors as above."""
    from lerobot.teleoperators import TeleoperatorConfig

    return _decoded(TeleoperatorConfig, "teleop", values, "lerobot.teleoperators", discover)


def _decoded(base: Any, key: str, values: Mapping[str, Any], families: str, discover: str | None) -> Any:
    import draccus
    from draccus.utils import DraccusException
    from lerobot.cameras import CameraConfig

    if not values.get("type"):
        raise UserError(f"'{key}.type' is missing: which LeRobot {key} is it?", again({f"{key}.type": "fake"}))
    kind = NEAR[key].get(values["type"], values["type"])
    if discover:
        _import(discover, key)
    _register(base, kind, families, key)
    for camera in _cameras(values):
        _register(CameraConfig, str(camera.get("type")), "lerobot.cameras", f"{key}.cameras")
    try:
        return draccus.decode(base, {**values, "type": kind})
    except DraccusException as error:
        raise _explained(error, key, (base, CameraConfig)) from error


def _cameras(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    cameras = values.get("cameras")
    return [one for one in cameras.values() if isinstance(one, Mapping)] if isinstance(cameras, Mapping) else []


def _register(base: Any, kind: str, families: str, key: str) -> None:
    """Import whatever registers ``kind``."""
    if kind in base.get_known_choices():
        return
    if kind in FAMILY:
        _import(FAMILY[kind], key)
        return
    missing: dict[str, str] = {}
    for module in pkgutil.iter_modules(importlib.import_module(families).__path__, f"{families}."):
        if module.ispkg:
            try:
                importlib.import_module(module.name)
            except ImportError as error:  # a family whose hardware library is not installed registers nothing
                missing[module.name] = str(error)
    if kind not in base.get_known_choices():
        from lerobot.utils.import_utils import register_third_party_plugins

        register_third_party_plugins()
    if kind not in base.get_known_choices():
        known = sorted({*base.get_known_choices(), *NEAR.get(key, {}), *(["fake"] if key == "robot" else [])})
        lacking = "".join(f"; {name.rpartition('.')[2]} cannot be imported: {why}" for name, why in missing.items())
        raise UserError(f"LeRobot knows no {key} of type '{kind}'{did_you_mean(kind, known)}{lacking}")


def _import(package: str, key: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{key}: {package} cannot be imported: {error}") from error


def _explained(error: Exception, key: str, bases: tuple[Any, ...]) -> UserError:
    """draccus's error as a sentence with the key as it was typed."""
    text = " ".join(str(error).split())
    if error.__cause__ is not None and "instantiate" in text:
        text = str(error.__cause__)
    place = ".".join([key, *map(str, getattr(error, "key_path", None) or ())])
    wrong = re.search(r"The fields `([^`]+)`.* are not valid for (\w+)", text)
    if wrong is None:
        return UserError(f"{place}: {re.sub(r'^`[^`]*`: ', '', text)}")
    name, kind = wrong.groups()
    classes = [choice for base in bases for choice in base.get_known_choices().values() if choice.__name__ == kind]
    known = [field.name for field in dataclasses.fields(classes[0])] if classes else []
    near = nearest(name, known)
    right = again({f"{place}.{name}->{place}.{near}": "VALUE"}) if near else None
    return UserError(f"unknown key '{place}.{name}'{did_you_mean(name, known)}", right)
