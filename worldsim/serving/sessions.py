"""Each client its own episode: a policy's memory is never shared between two of them."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from worldsim.core.protocols import Policy, SupportsFork
from worldsim.serving.limits import Limits, Refusal

_NAME = re.compile(r"[\w.:-]{1,64}", re.ASCII)


@dataclass
class Session:
    """One client's episode.

    Attributes:
        policy: a fork with its own memory, or the one policy there is.
        begun: whether an episode has begun. used: when it was used last, s of the monotonic clock.
        total_ms: how long its last request took in all, ms; None before the first.
    """

    policy: Policy
    begun: bool = False
    used: float = 0.0
    total_ms: float | None = None


@dataclass
class Sessions:
    """Hands out sessions; all of them share the weights of one policy.

    A policy that cannot be forked serves one websocket or one named session at a time; the others are told that it is busy.
    """

    policy: Policy
    limits: Limits
    clock: Callable[[], float] = time.monotonic
    named: OrderedDict[str, Session] = field(default_factory=OrderedDict)
    sole: Session | None = None

    def open(self) -> Session:
        """A session for one websocket or one name."""
        session = self.once()
        if session.policy is self.policy:
            self.sole = session
        return session

    def once(self) -> Session:
        """A session for one request that names none: an episode of its own, which nothing follows."""
        if isinstance(self.policy, SupportsFork):
            return Session(self.policy.fork())
        if self.sole is not None:
            raise Refusal(503, "this policy keeps one episode at a time, and another client is using it")
        return Session(self.policy)

    def close(self, session: Session) -> None:
        if session is self.sole:
            self.sole = None

    def of(self, name: str) -> Session:
        """The session of that name, begun anew when it is unknown or was given up after ``session_seconds``."""
        if not _NAME.fullmatch(name):
            raise Refusal(422, "session: wanted 1 to 64 letters, digits or . : _ -")
        now = self.clock()
        self._give_up(now)
        if name not in self.named:
            if len(self.named) >= self.limits.sessions:
                raise Refusal(503, f"all {self.limits.sessions} sessions are in use; try again later or reuse one")
            self.named[name] = self.open()
        self.named.move_to_end(name)
        self.named[name].used = now
        return self.named[name]

    def _give_up(self, now: float) -> None:
        """Forget sessions that nobody used for long; the oldest come first."""
        while self.named:
            name, session = next(iter(self.named.items()))
            if now - session.used <= self.limits.session_seconds:
                return
            self.close(self.named.pop(name))
