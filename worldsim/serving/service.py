"""What is served: a policy, what it needs, what it says of itself; from a read request to checked actions."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from anyio import CapacityLimiter

from worldsim import __version__
from worldsim.core.errors import UserError
from worldsim.core.protocols import Policy, SupportsObserve
from worldsim.core.types import ActionSpec, PolicyNeeds
from worldsim.serving.limits import Limits, Refusal
from worldsim.serving.observations import Call, Reader
from worldsim.serving.sessions import Session, Sessions
from worldsim.serving.turns import Turns

ENTRIES = ("pixels", "agent_pos", "environment_state", "task")
READERS = 4
"""Messages that are read at once."""
KEPT = 10_000
"""Inference times that are remembered for the quantiles."""


@dataclass
class Service:
    """One policy for all clients.

    Attributes:
        policy: acts; forked per client where it can be.
        name: what the user called it, said to clients.
        needs: what it was trained on; None takes any cameras and state.
        action_spec: what its rows mean, where ``needs`` does not say it.
        seed: of episodes whose client gives none.
        limits, allowed, rename: see :class:`~worldsim.serving.observations.Reader`.
        counts: answers by HTTP status (websocket: 200, or what the refusal would be). infer_ms: the latest inference times.
        digest: of the policy's files, so that a client knows whether it is still the same.
        sockets: websockets that are open. stopping: whether it has been told to end.
    """

    policy: Policy
    name: str
    needs: PolicyNeeds | None = None
    action_spec: ActionSpec | None = None
    seed: int = 0
    limits: Limits = field(default_factory=Limits)
    allowed: Path | None = None
    rename: Mapping[str, str | None] = field(default_factory=dict)
    counts: Counter[int] = field(default_factory=Counter)
    infer_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    digest: str | None = None
    sockets: int = 0
    stopping: bool = False

    def __post_init__(self) -> None:
        self.reader = Reader(self.needs, self.limits, self.allowed, self.rename)
        self.sessions = Sessions(self.policy, self.limits)
        self.turns = Turns(self.limits.waiting)
        self.readers = CapacityLimiter(READERS)
        self.began = time.monotonic()
        if self.needs is not None:
            self.action_spec = self.needs.action_spec

    def metadata(self) -> dict[str, Any]:
        """What a client needs to know, as plain values: who serves, which policy, what it wants, what its rows mean."""
        spec, needs = self.action_spec, self.needs
        return {
            "server": "worldsim",
            "version": __version__,
            "protocols": ["openvla", "lapa", "openpi"],
            "policy": self.name,
            "digest": self.digest,
            "looks_back": bool(getattr(self.policy, "looks_back", False)),
            "action_spec": spec.to_json() if spec else None,
            "cameras": {name: list(size) for name, size in needs.cameras.items()} if needs else None,
            "state_names": list(needs.state_names) if needs else None,
            "fps": needs.fps if needs else (spec.rate if spec else None),
            "low": needs.low.tolist() if needs and needs.low is not None else None,
            "high": needs.high.tolist() if needs and needs.high is not None else None,
            "seed": self.seed,
            "limits": {"body": self.limits.body, "pixels": self.limits.pixels, "waiting": self.limits.waiting},
        }

    async def answer(self, call: Call, session: Session) -> tuple[np.ndarray | None, dict[str, float]]:
        """Actions float32 ``[K, A]`` (None where none were asked for) and ``server_timing`` in ms.

        Raises:
            Refusal: 422 the policy refuses what it is shown, 500 it failed, 503 too many wait.
        """
        began = time.perf_counter()
        actions, infer_ms = await self.turns.take(lambda: self._turn(call, session))
        timing = {"infer_ms": infer_ms}
        if session.total_ms is not None:
            timing["prev_total_ms"] = session.total_ms
        session.total_ms = 1e3 * (time.perf_counter() - began)
        return actions, timing

    def _turn(self, call: Call, session: Session) -> tuple[np.ndarray | None, float]:
        """In the policy's thread."""
        began = time.perf_counter()
        try:
            if call.reset or not session.begun:
                session.policy.reset(self.seed if call.seed is None else call.seed)
                session.begun = True
            if call.observation is None:
                return None, 0.0
            if call.observe:
                _observe(session.policy, call.observation)
                return None, 1e3 * (time.perf_counter() - began)
            actions = np.asarray(session.policy.act(call.observation))
        except UserError as error:
            raise Refusal(422, f"the policy refuses this: {error.sentence}") from error
        except Exception as error:
            absent = error.args[0] if isinstance(error, KeyError) and error.args else None
            if absent in ENTRIES and absent not in (call.observation or {}):
                raise Refusal(422, f"{absent} is missing; this policy reads it") from error
            # The server is the door here: whatever a policy raises is its client's answer and ends no one else's episode.
            raise Refusal(500, f"the policy failed: {type(error).__name__}: {str(error)[:300]}") from error
        ms = 1e3 * (time.perf_counter() - began)
        self.infer_ms.append(ms)
        return self._checked(actions), ms

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        width = self.action_spec.dim if self.action_spec else None
        if actions.ndim != 2 or not len(actions) or (width is not None and actions.shape[1] != width):
            raise Refusal(500, f"the policy gave {list(actions.shape)}; wanted [K, {width or 'A'}]")
        if not np.isfinite(actions).all():
            raise Refusal(500, "the policy gave actions that are not finite numbers; they are not sent")
        return np.ascontiguousarray(actions, np.float32)

    def enter(self) -> None:
        """One websocket more.

        Raises:
            Refusal: 503, when there are as many as there may be.
        """
        if self.sockets >= self.limits.sessions:
            raise Refusal(503, f"{self.sockets} websockets are open already; at most {self.limits.sessions} are served")
        self.sockets += 1

    def leave(self) -> None:
        self.sockets -= 1

    def health(self) -> dict[str, Any]:
        return {
            "status": "stopping" if self.stopping else "ok",
            "answered": self.counts[200],
            "refused": sum(number for status, number in self.counts.items() if status != 200),
            "waiting": self.turns.taken,
            "seconds": round(time.monotonic() - self.began, 1),
        }

    def statistics(self) -> dict[str, Any]:
        """Counts by status and quantiles of the inference times, for ``result.json``."""
        times = np.array(self.infer_ms or [np.nan])
        quantiles = {f"infer_ms_{q}": _rounded(np.quantile(times, q / 100)) for q in (50, 99)}
        return {"answers": {str(status): self.counts[status] for status in sorted(self.counts)}, **quantiles}

    def stop(self) -> None:
        self.stopping = True
        self.turns.stop()


def _observe(policy: Policy, observation: Mapping[str, Any]) -> None:
    """A frame between two questions; a policy that does not look back has no use for it."""
    if isinstance(policy, SupportsObserve) and policy.looks_back:
        policy.observe(observation)


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 3)
