"""Ctrl-C and ``kill`` as a wish to stop in order: the first is noticed by the loop, the second is not waited for."""

from __future__ import annotations

import signal
import threading
from typing import Any

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"} | (
    {signal.SIGHUP: "a lost terminal"} if hasattr(signal, "SIGHUP") else {}
)


class Signals:
    """``with Signals() as signals``: any of them raises KeyboardInterrupt, as Ctrl-C does, unless it is to be patient.

    Attributes:
        got: what came first, in words; None before. patience: signals that are only noted before one raises.
    """

    def __init__(self) -> None:
        self.got: str | None = None
        self.patience = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._came) for number in NAMES}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def gently(self) -> None:
        """From now on the next signal is only noted: whoever runs looks at ``got``, and whoever closes is not disturbed."""
        self.patience = 1

    def _came(self, number: int, frame: object) -> None:
        self.got = self.got or NAMES[signal.Signals(number)]
        if self.patience < 1:
            raise KeyboardInterrupt
        self.patience -= 1
