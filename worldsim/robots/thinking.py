"""The policy in a thread of its own: the loop asks, waits for as long as it can afford, and goes on."""

from __future__ import annotations

import queue
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
    """One question at a time, and between questions the frames on which a policy that looks back is not asked.

    The thread ends with the process: a policy that hangs cannot hold up whoever stops the robot.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.jobs: queue.SimpleQueue[Callable[[], Answer | None] | None] = queue.SimpleQueue()
        self.answered = threading.Event()
        self.said: Answer | Exception | None = None
        self.thread = threading.Thread(target=self._think, name="policy", daemon=True)
        self.thread.start()

    def ask(self, observation: Mapping[str, Any], reset: int | None = None) -> None:
        """Begin to think about ``observation``; with a seed the policy is reset before."""
        self.answered.clear()
        self.jobs.put(lambda: self._act(observation, reset))

    def show(self, observation: Mapping[str, Any]) -> None:
        """A frame on which it is not asked, for a policy that says that it looks back."""
        observe = getattr(self.policy, "observe", None)
        if observe is not None and getattr(self.policy, "looks_back", False):
            self.jobs.put(lambda: observe(observation))

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
        if isinstance(self.said, UserError):
            raise Stopped("policy", f"the policy failed: {self.said.sentence}") from self.said
        if isinstance(self.said, Exception):
            raise Stopped("policy", f"the policy failed: {type(self.said).__name__}: {self.said}") from self.said
        assert self.said is not None
        if self.said.chunk.ndim != 2 or not len(self.said.chunk):
            raise Stopped("policy", f"the policy gave an array of shape {self.said.chunk.shape} and no rows of actions")
        return self.said

    def close(self) -> None:
        self.jobs.put(None)

    def _think(self) -> None:
        while (job := self.jobs.get()) is not None:
            try:
                said: Answer | Exception | None = job()
            except Exception as error:  # handed to the loop, which stops the robot and says what it was
                said = error
            if isinstance(said, Answer | Exception):
                self.said = said
                self.answered.set()

    def _act(self, observation: Mapping[str, Any], seed: int | None) -> Answer:
        began = time.perf_counter()
        if seed is not None:
            self.policy.reset(seed)
        chunk = np.asarray(self.policy.act(observation), np.float32)
        world = getattr(self.policy, "last_world", None)
        return Answer(chunk, time.perf_counter() - began, dict(world) if world else None)
