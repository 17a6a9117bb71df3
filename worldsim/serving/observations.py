"""A payload's keys -> the observation that a policy takes, whichever of the known forms they are in.

| form | frames | state | task |
|---|---|---|---|
| ours | ``pixels`` {camera: frame} | ``agent_pos`` | ``task`` |
| OpenVLA, LAPA | ``image`` (the one camera), ``full_image`` | ``state`` | ``instruction`` |
| openpi | ``observation/<camera>``, ``observation/image`` | ``observation/state`` | ``prompt`` |
| LeRobot | ``observation.images.<camera>``, ``observation.image`` | ``observation.state`` | ``task`` |

source: spec lapa 5.3-5.5. Any other name is led to one of these by the server's ``rename``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.core.errors import did_you_mean
from worldsim.core.types import PolicyNeeds
from worldsim.serving.arrays import described, from_lists
from worldsim.serving.images import frame_from_text
from worldsim.serving.limits import Limits, Refusal

TASKS = ("task", "instruction", "prompt")
STATES = ("agent_pos", "state")
SOLE = ("image", "full_image")
TRUTH = "environment_state"
FRAME = "uint8 [H, W, 3]"
CONTROL = {"session": str, "seed": int, "reset": bool, "observe": bool, "chunk": bool, "unnorm_key": str}
"""What else a payload may say. ``unnorm_key`` is OpenVLA's name of statistics; a policy here has its own and needs no name."""


@dataclass
class Call:
    """One request, read: what is seen, and how it wants to be answered.

    Attributes:
        observation: ``pixels`` {camera: uint8 ``[H, W, 3]``}, ``agent_pos`` float32 ``[S]``, ``task`` …; None for a bare reset.
        session: the name of a REST session, or None.
        reset, seed: whether an episode begins, and its seed (None: the server's).
        observe: whether the frame is only to be remembered, for policies that look back; nothing is asked.
        chunk: whether the whole plan is wanted instead of its first row.
        as_arrays: whether anything came as an array, so that the reply should be one.
    """

    observation: dict[str, Any] | None
    session: str | None = None
    reset: bool = False
    seed: int | None = None
    observe: bool = False
    chunk: bool = False
    as_arrays: bool = False


@dataclass(frozen=True)
class Reader:
    """Reads payloads for one policy.

    Attributes:
        needs: what the policy was trained on; None (a scripted policy) takes any cameras and any state.
        limits: sizes.
        allowed: the folder whose pictures a client may name by path; None refuses paths.
        rename: wire key -> the name that is read instead; None drops the key.
    """

    needs: PolicyNeeds | None
    limits: Limits = field(default_factory=Limits)
    allowed: Path | None = None
    rename: Mapping[str, str | None] = field(default_factory=dict)

    def read(self, payload: Mapping[str, Any]) -> Call:
        """
        Raises:
            Refusal: 400, 403, 413 or 422, naming the key and what is wanted.
        """
        control, seen = _split(payload)
        observation: dict[str, Any] = {}
        for sent, value in seen.items():
            name = self.rename.get(sent, sent)
            if name is not None:
                self._take(observation, sent, _bare(name), value)
        call = Call(None, **control, as_arrays=any(isinstance(v, np.ndarray) for v in _values(seen)))
        if observation or not call.reset:
            self._check(observation)
            call.observation = observation
        return call

    def _take(self, observation: dict[str, Any], sent: str, name: str, value: Any) -> None:
        """One wire entry into the observation."""
        if name in TASKS:
            _put(observation, "task", _text(value, sent), sent)
        elif name in STATES:
            _put(observation, "agent_pos", self._vector(value, sent).astype(np.float32), sent)
        elif name == TRUTH:
            _put(observation, TRUTH, self._vector(value, sent), sent)
        elif name in ("pixels", "images"):
            if not isinstance(value, Mapping):
                raise Refusal(422, f"{sent}: wanted a mapping of camera to {FRAME}")
            for camera, frame in value.items():
                where = f"{sent}.{camera}"
                self._take_frame(observation, where, self._camera(str(camera), where), frame)
        else:
            self._take_frame(observation, sent, self._camera(name, sent), value)

    def _take_frame(self, observation: dict[str, Any], sent: str, camera: str, value: Any) -> None:
        pixels = observation.setdefault("pixels", {})
        if len(pixels) >= self.limits.cameras:
            raise Refusal(413, f"{sent}: at most {self.limits.cameras} frames are accepted")
        _put(pixels, camera, self._frame(value, sent), sent)

    def _camera(self, name: str, sent: str) -> str:
        """The policy's camera that a wire name means. A policy that needs none is shown any that is called so."""
        cameras = list(self.needs.cameras) if self.needs else []
        if name in cameras:
            return name
        if name in SOLE and len(cameras) == 1:
            return cameras[0]
        if name in SOLE and cameras:
            raise Refusal(422, f"{sent}: this policy sees {len(cameras)} cameras; wanted pixels of {', '.join(cameras)}")
        if not cameras and (name in SOLE or name != sent):
            return name
        raise Refusal(422, f"unknown key or camera '{sent}'{did_you_mean(name, _known(cameras))}")

    def _frame(self, value: Any, sent: str) -> np.ndarray:
        if isinstance(value, str):
            return frame_from_text(value, sent, self.allowed, self.limits)
        array = from_lists(value, sent) if isinstance(value, list) else value
        if not isinstance(array, np.ndarray):
            raise Refusal(422, f"{sent}: got {type(value).__name__}; wanted {FRAME}")
        if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            raise Refusal(422, f"{sent}: got {described(array)}; wanted {FRAME}")
        if array.shape[0] * array.shape[1] > self.limits.pixels:
            raise Refusal(413, f"{sent}: {described(array)} has more than {self.limits.pixels} pixels")
        if isinstance(value, list) and array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255:
            return array.astype(np.uint8)
        if array.dtype != np.uint8:
            raise Refusal(422, f"{sent}: got {described(array)}; wanted {FRAME}, values 0 to 255")
        return array

    def _vector(self, value: Any, sent: str) -> np.ndarray:
        array = from_lists(value, sent) if isinstance(value, list) else value
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf" or array.ndim != 1:
            got = described(array) if isinstance(array, np.ndarray) else type(value).__name__
            raise Refusal(422, f"{sent}: got {got}; wanted numbers [{self._width(sent)}]")
        if len(array) > self.limits.values:
            raise Refusal(413, f"{sent}: {len(array)} values; at most {self.limits.values} are accepted")
        if not np.isfinite(array).all():
            at = int(np.flatnonzero(~np.isfinite(array))[0])
            raise Refusal(422, f"{sent}: value {at} is {array[at]}; wanted finite numbers")
        return array

    def _width(self, sent: str) -> str:
        state = self.needs is not None and _bare(self.rename.get(sent, sent) or "") in STATES
        return str(len(self.needs.state_names)) if self.needs and state else "S"

    def _check(self, observation: Mapping[str, Any]) -> None:
        """Everything that the policy needs is there, in the width it was trained on."""
        if self.needs is None:
            return
        missing = [camera for camera in self.needs.cameras if camera not in observation.get("pixels", {})]
        if missing:
            raise Refusal(422, f"pixels.{missing[0]} is missing; wanted {FRAME} of {', '.join(self.needs.cameras)}")
        names = self.needs.state_names
        if names and "agent_pos" not in observation:
            raise Refusal(422, f"agent_pos is missing; wanted float32 [{len(names)}]: {', '.join(names)}")
        if names and len(observation["agent_pos"]) != len(names):
            there = described(observation["agent_pos"])
            raise Refusal(422, f"agent_pos: got {there}; wanted float32 [{len(names)}]: {', '.join(names)}")


def _split(payload: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a payload says about the call, checked, and the rest: what is seen."""
    control: dict[str, Any] = {}
    seen = dict(payload)
    for key, kind in CONTROL.items():
        value = seen.pop(key, None)
        if value is not None and type(value) is not kind:
            raise Refusal(422, f"{key}: got {type(value).__name__}; wanted {kind.__name__}")
        if value is not None and key != "unnorm_key":
            control[key] = value
    if not 0 <= control.get("seed", 0) < 2**63:
        raise Refusal(422, f"seed: got {control['seed']}; wanted 0 to {2**63 - 1}")
    return control, seen


def _bare(name: str) -> str:
    """A wire key without the prefixes of openpi and LeRobot."""
    for prefix in ("observation/", "observation."):
        name = name.removeprefix(prefix)
    for prefix in ("images.", "images/"):
        name = name.removeprefix(prefix)
    return name


def _values(seen: Mapping[str, Any]) -> list[Any]:
    """Every value that could be an array."""
    nested = [inner for value in seen.values() if isinstance(value, Mapping) for inner in value.values()]
    return [*seen.values(), *nested]


def _known(cameras: list[str]) -> list[str]:
    return [*TASKS, *STATES, "pixels", "image", TRUTH, *CONTROL, *cameras]


def _text(value: Any, sent: str) -> str:
    if not isinstance(value, str) or len(value) > 4096:
        raise Refusal(422, f"{sent}: wanted a text of at most 4096 characters")
    return value


def _put(into: dict[str, Any], name: str, value: Any, sent: str) -> None:
    if name in into:
        raise Refusal(422, f"{sent}: '{name}' came twice under different names")
    into[name] = value
