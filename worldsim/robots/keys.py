"""The stop key: q, space or esc on the terminal that the command was typed in. No keyboard library, no display."""

from __future__ import annotations

import os
import select
import sys
from typing import Any

KEYS = {"q": "q", " ": "space", "\x1b": "esc"}


class StopKey:
    """``with StopKey() as key: key.pressed()``; without a terminal on stdin it never is.

    Args:
        file: number of an open terminal; the process's stdin when None.
    """

    def __init__(self, file: int | None = None) -> None:
        self.file = file
        self.saved: Any = None

    def __enter__(self) -> StopKey:
        if self.file is None:
            self.file = _own_terminal()
        if self.file is not None:
            import termios
            import tty

            self.saved = termios.tcgetattr(self.file)
            tty.setcbreak(self.file)  # keys arrive one by one; Ctrl-C stays a signal
        return self

    def __exit__(self, *exc: object) -> None:
        if self.saved is not None and self.file is not None:
            import termios

            termios.tcsetattr(self.file, termios.TCSADRAIN, self.saved)
            self.saved = None

    def pressed(self) -> str | None:
        """The name of a stop key that was pressed since the last call, else None. Never waits."""
        while self.file is not None and select.select([self.file], [], [], 0)[0]:
            typed = os.read(self.file, 64).decode("utf8", "ignore")
            if not typed:
                self.file = None  # the terminal went away
            found = next((KEYS[letter] for letter in typed if letter in KEYS), None)
            if found is not None:
                return found
        return None


def _own_terminal() -> int | None:
    """stdin, where it is a terminal that this process may read: in the background it would be stopped for trying."""
    if sys.stdin is None or not sys.stdin.isatty():
        return None
    file = sys.stdin.fileno()
    return file if os.tcgetpgrp(file) == os.getpgrp() else None
