"""The policy in a thread of its own: the loop asks, waits for as long as it can afford, and goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldsim.core.errors import UserError
from worldsim.core.protocols import Policy
from worldsim.robots.pace import SLICE
from worldsim.robots.safety import Stopped


@dataclass(frozen=True)
class Answer:
    """What the policy said.

    Attributes:
        chunk: float32 ``[K, A]``. seconds: how long it took. world: what it saw and predicted as tokens
            (``policy.last_world``), or None.
    """

    chunk: np.ndarray
    seconds: float
    world: Mapping[str, Any] | None


class Thinker:
    """One question at a time. The thread ends with the process: a policy that hangs cannot hold up whoever stops the robot."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.asked, self.answered = threading.Event(), threading.Event()
        self.question: tuple[Mapping[str, Any] | None, int | None] = (None, None)
        self.said: Answer | Exception | None = None
        self.busy = self.ended = False
        self.thread = threading.Thread(target=self._think, name="policy", daemon=True)
        self.thread.start()

    def ask(self, observation: Mapping[str, Any], reset: int | None = None) -> None:
        """Begin to think about ``observation``; with a seed the policy is reset before."""
        self.question, self.busy = (observation, reset), True
        self.answered.clear()
        self.asked.set()

    def answer(self, until: float | None, look: Callable[[], None] = lambda: None) -> Answer | None:
        """The answer, or None when there is none at ``until`` (``time.perf_counter()``; None waits for ever).

        Raises:
            Stopped: the policy failed, or gave no rows; or ``look`` says so.
        """
        while not self.answered.is_set():
            left = SLICE if until is None else until - time.perf_counter()
            if left <= 0:
                return None
            self.answered.wait(min(left, SLICE))
            look()
        self.busy = False
        if isinstance(self.said, UserError):
            raise Stopped("policy", f"the policy failed: {self.said.sentence}") from self.said
        if isinstance(self.said, Exception):
            raise Stopped("policy", f"the policy failed: {type(self.said).__name__}: {self.said}") from self.said
        assert self.said is not None
        if self.said.chunk.ndim != 2 or not len(self.said.chunk):
            raise Stopped("policy", f"the policy gave an array of shape {self.said.chunk.shape} and no rows of actions")
        return self.said

    def close(self) -> None:
        self.ended = True
        self.asked.set()

    def _think(self) -> None:
        while True:
            self.asked.wait()
            self.asked.clear()
            if self.ended:
                return
            observation, seed = self.question
            try:
                self.said = self._one(observation, seed)
            except Exception as error:  # handed to the loop, which stops the robot and says what it was
                self.said = error
            self.answered.set()

    def _one(self, observation: Mapping[str, Any] | None, seed: int | None) -> Answer:
        began = time.perf_counter()
        if seed is not None:
            self.policy.reset(seed)
        chunk = np.asarray(self.policy.act(observation or {}), np.float32)
        world = getattr(self.policy, "last_world", None)
        return Answer(chunk, time.perf_counter() - began, dict(world) if world else None)
