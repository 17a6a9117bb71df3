"""A served policy for tests: it remembers what it was shown, so that a mix-up of two clients shows in its numbers."""

from __future__ import annotations

import copy
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

from worldsim.core.types import ActionSpec, PolicyNeeds
from worldsim.serving.door import seal
from worldsim.serving.limits import Limits
from worldsim.serving.server import PolicyServer
from worldsim.serving.service import Service

SPEC = ActionSpec(("dx", "dy", "grip"), ("m", "m", "1"), "delta", "end-effector", rate=10.0)
NEEDS = PolicyNeeds({"front": (12, 16)}, ("x", "y"), SPEC, 10.0, low=-np.ones(3, np.float32), high=np.ones(3, np.float32))


class Remembering:
    """Its rows mix the seed, the number of calls, this frame, all frames before it, the state and the task."""

    def __init__(self, needs: PolicyNeeds = NEEDS, pause: float = 0.0) -> None:
        self.needs, self.pause, self.entered = needs, pause, threading.Lock()

    def reset(self, seed: int | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.seen: list[float] = []

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        assert self.entered.acquire(blocking=False), "two clients at once"
        try:
            time.sleep(self.pause)
            frame = observation["pixels"]["front"].astype(np.float64)
            self.seen.append(float((frame * np.arange(1, frame.size + 1).reshape(frame.shape)).sum() % 9973 / 9973))
            state, words = observation["agent_pos"].astype(np.float64), len(observation.get("task", ""))
            first = [self.seen[-1] + state.sum(), np.mean(self.seen) * len(self.seen), self.rng.normal() + words]
            return np.array([first, np.cos(first), np.sin(first)], np.float32)
        finally:
            self.entered.release()

    def fork(self) -> Remembering:
        return copy.copy(self)  # the lock stays shared, all else begins with reset


class Held(Remembering):
    """Takes its time over the task ``slow``: until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.release = threading.Event(), threading.Event()

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        if observation.get("task") == "slow":
            self.begun.set()
            assert self.release.wait(60)
        return super().act(observation)


def observation(index: int) -> dict[str, Any]:
    """Another one for each index."""
    rng = np.random.default_rng(index)
    frame = rng.integers(0, 256, (12, 16, 3), np.uint8)
    return {"pixels": {"front": frame}, "agent_pos": rng.normal(size=2).astype(np.float32), "task": f"task {index % 7}"}


def locally(indices: Any, seed: int = 0) -> list[np.ndarray]:
    """What the policy answers to these observations in one episode, without a server."""
    policy = Remembering()
    policy.reset(seed)
    return [policy.act(observation(index)) for index in indices]


def serve(policy: Any = None, key: str | None = None, limits: Limits | None = None, **options: Any) -> PolicyServer:
    """A real server on a free port; use it as ``with serve() as server``."""
    policy = policy or Remembering()
    service = Service(policy, "test", getattr(policy, "needs", None), limits=limits or Limits(), **options)
    return PolicyServer(service, sealed_key=seal(key) if key else None)


def openvla(index: int) -> dict[str, Any]:
    """An observation in the keys of OpenVLA's REST form."""
    seen = observation(index)
    return {"image": seen["pixels"]["front"], "state": seen["agent_pos"], "instruction": seen["task"]}


def openpi(index: int) -> dict[str, Any]:
    """An observation in the keys of openpi's LIBERO policy."""
    seen = observation(index)
    frames = {f"observation/{name}": frame for name, frame in seen["pixels"].items()}
    return {**frames, "observation/state": seen["agent_pos"], "prompt": seen["task"]}


def plain(index: int) -> dict[str, Any]:
    """An observation as plain JSON."""
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in openvla(index).items()}


def request(
    server: PolicyServer, path: str = "/act", body: Any = None, method: str | None = None, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """(status, JSON or text, headers) of one request with nothing but the standard library."""
    data = json.dumps(body).encode() if isinstance(body, dict | list) else body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = urllib.request.Request(f"http://{server.address}{path}", data=data, headers=named, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            status, text, got = answer.status, answer.read(), _lower(answer.headers)
    except urllib.error.HTTPError as error:
        status, text, got = error.code, error.read(), _lower(error.headers)
    try:
        return status, json.loads(text), got
    except ValueError:
        return status, text.decode("utf8", "replace"), got


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
