"""The errors a user can cause, each one sentence plus a command to type.

Everything that is the user's to mend is a :class:`UserError`; the one door in ``worldsim.cli.door`` prints it.
Any other exception that reaches the door is a defect of this program and is reported as such.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # core.types raises the errors of this file
    from worldsim.core.types import Result

AGAIN = "again"
"""First word of a command that stands for what the user typed; see :func:`again`."""


def again(changes: Mapping[str, Any] | None = None, /, **more: Any) -> str:
    """The user's own command line with these config keys changed: ``again(frames=20)``, ``again({"train.lr": 1e-5})``.

    Only the error door knows what was typed; it puts in the option of that name, or ``--set key=value`` where the command
    has none; ``"old->new"`` renames a key that was mistyped (``worldsim.cli.again``). A string, so that it crosses
    processes and machines as any command does.
    """
    changed = {**(changes or {}), **more}
    return shlex.join([AGAIN, *(f"{key}={'null' if value is None else value}" for key, value in changed.items())])


def as_typed(command: str | Sequence[object] | None) -> str | None:
    """A command as a shell reads it: words are quoted where they need it, text is left as it is."""
    if command is None or isinstance(command, str):
        return command
    return shlex.join(map(str, command))


class UserError(Exception):
    """A wrong value or bad data: one sentence naming the file or key, then a command to type.

    Args:
        sentence: what is wrong, naming the source file or key.
        command: what to type next: words, which are quoted; or text without a path in it; or :func:`again`. None
            where the command's ``--help`` is all there is to say.
    """

    exit_code = 1

    def __init__(self, sentence: str, command: str | Sequence[object] | None = None) -> None:
        super().__init__(sentence)
        self.sentence = " ".join(sentence.split())
        self.command = as_typed(command)

    def __reduce__(self) -> tuple:  # exceptions cross process boundaries
        return type(self), (self.sentence, self.command)


class BadEpisode(UserError):
    """One episode cannot be used. ``reason`` names the file or key; the other episodes go on."""

    def __init__(self, episode: str, reason: str) -> None:
        super().__init__(f"episode {episode}: {reason}")
        self.episode, self.reason = episode, " ".join(reason.split())

    def __reduce__(self) -> tuple:
        return type(self), (self.episode, self.reason)


class PartialResult(UserError):
    """Part of the work could not be done; what could be done is finished and reported in ``result``.

    The worker writes ``result`` to ``result.json`` with a failed status before the sentence is printed.
    """

    def __init__(self, sentence: str, command: str | Sequence[object] | None, result: Result) -> None:
        super().__init__(sentence, command)
        self.result = result

    def __reduce__(self) -> tuple:
        return type(self), (self.sentence, self.command, self.result)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM after everything was put in order; what there is to report is in ``result``."""

    def __init__(self, result: Result) -> None:
        super().__init__("interrupted")
        self.result = result


class RemoteError(UserError):
    """The remote side failed or could not be reached."""

    exit_code = 3


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``word`` is a near miss of."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def and_more(names: Collection[str]) -> str:
    """`` (and 3 more)`` after the first of several names; nothing after the only one."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for a near miss, else the list of what is known."""
    known = list(known)
    near = nearest(word, known)
    if near:
        return f"; did you mean '{near}'?"
    return f"; known: {', '.join(known)}" if known else ""
