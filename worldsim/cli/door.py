"""The one error door: every failure leaves as one sentence, a command to type, and the right exit code.

0 done · 1 a wrong value or bad data · 2 an unknown command or option, or a missing argument · 3 remote trouble ·
130 interrupted. A traceback only with ``WORLDSIM_DEBUG=1``.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer
from typer._click.exceptions import MissingParameter, UsageError

from worldsim.core.errors import UserError

INTERRUPTED = "interrupted; the same command continues where it stopped"


def through_the_door(
    call: Callable[[], Any], machine: bool = False, hint: Callable[[str | None], str | None] = lambda command: command
) -> int:
    """Run ``call`` and return the exit code; what went wrong is printed on stderr.

    Args:
        machine: ``--json`` was typed, so that even a usage error puts one JSON object on stdout.
        hint: an error's command -> what to type; see ``worldsim.cli.again``.
    """
    try:
        code = call()
        if code == 130:  # Typer turns Ctrl-C into an exit code of its own
            return _leave(130, INTERRUPTED)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _leave(130, INTERRUPTED)
    except UserError as error:
        return _leave(error.exit_code, error.sentence, hint(error.command))
    except UsageError as error:
        wrong_value = isinstance(error, typer.BadParameter) and not isinstance(error, MissingParameter)
        path = error.ctx.command_path if error.ctx else "worldsim"
        if machine:
            print(
                json.dumps(
                    {
                        "status": "failed",
                        "command": path,
                        "out": None,
                        "metrics": {},
                        "notes": [],
                        "seconds": 0.0,
                        "error": error.format_message(),
                    }
                )
            )
        return _leave(1 if wrong_value else 2, error.format_message().rstrip("."), f"{path} --help")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        if error.filename is None and error.errno is None:
            return _defect(error)
        name = f"{error.filename}: " if error.filename else ""
        return _leave(1, f"{name}{error.strerror or error}", "df -h ." if error.errno in (28, 122) else hint(None))
    except Exception as error:
        # Not a swallowed error: anything that is not a UserError is a defect of this program, and is called so.
        return _defect(error)


def _leave(code: int, sentence: str, command: str | None = None) -> int:
    if debugging() and code not in (2, 130):
        traceback.print_exc()
    print(f"error: {sentence}" if code != 130 else sentence, file=sys.stderr)
    if command:
        print(f"try:   {command}", file=sys.stderr)
    return code


def _defect(error: Exception) -> int:
    if debugging():
        traceback.print_exc()
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    print(
        f"error: unexpected {type(error).__name__} in {os.path.basename(where.filename)}:{where.lineno}: {text}\n"
        "try:   WORLDSIM_DEBUG=1 and the same command, for the traceback to report",
        file=sys.stderr,
    )
    return 1


def debugging() -> bool:
    return os.environ.get("WORLDSIM_DEBUG", "") not in ("", "0")
