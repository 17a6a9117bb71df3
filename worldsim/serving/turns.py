"""One turn at a time: whatever the number of clients, the policy runs in one thread, first come, first served."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from worldsim.serving.limits import Refusal

T = TypeVar("T")
_STOP = object()


class Turns:
    """``await turns.take(function)`` runs it in the one worker thread.

    The thread is a daemon: a policy that hangs holds up its clients, not the end of the program.

    Args:
        waiting: how many may wait; one more is refused.
    """

    def __init__(self, waiting: int) -> None:
        self.waiting, self.taken = waiting, 0
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self._thread.start()

    async def take(self, function: Callable[[], T]) -> T:
        """The function's value, or its exception.

        Raises:
            Refusal: 503, when too many wait already.
        """
        if self.taken > self.waiting:
            raise Refusal(503, f"{self.waiting} requests are waiting for the policy already; try again later")
        future: asyncio.Future = asyncio.get_running_loop().create_future()
        self.taken += 1
        try:
            self._queue.put((function, future))
            return await future
        finally:
            self.taken -= 1

    def stop(self) -> None:
        """No further turn is run; the one under way ends in its own time."""
        self._queue.put(_STOP)

    def _work(self) -> None:
        while (item := self._queue.get()) is not _STOP:
            function, future = item
            if future.cancelled():  # its client has gone
                continue
            try:
                value, error = function(), None
            except Exception as raised:  # handed on to whoever waits for it
                value, error = None, raised
            _settle(future, value, error)


def _settle(future: asyncio.Future, value: Any, error: Exception | None) -> None:
    """Give the result to the event loop that waits for it, unless that has ended."""

    def give() -> None:
        if not future.done():
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    loop = future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(give)
