"""Ctrl-C and ``kill`` as a wish to stop in order: the first is noticed by the loop, the second is not waited for."""

from __future__ import annotations

import signal
import threading
from typing import Any

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"} | (
    {signal.SIGHUP: "a lost terminal"} if hasattr(signal, "SIGHUP") else {}
)


class Signals:
    """``with Signals() as signals``: outside of :meth:`gently` any of them raises KeyboardInterrupt, as Ctrl-C does.

    Attributes:
        got: what came while the loop ran, in words; None before.
    """

    def __init__(self) -> None:
        self.got: str | None = None
        self.gentle = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._came) for number in NAMES}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def gently(self, on: bool) -> None:
        """From now on the first signal is only noted (or, off, raises again)."""
        self.gentle = on

    def _came(self, number: int, frame: object) -> None:
        first, self.got = self.got is None, self.got or NAMES[signal.Signals(number)]
        if not (self.gentle and first):
            raise KeyboardInterrupt
