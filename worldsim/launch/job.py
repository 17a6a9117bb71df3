"""A job: a task, and where to run it. Launch options are parsed here; they are no part of a config's identity."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from worldsim.core.errors import UserError, again
from worldsim.core.task import Task

HOUR = 3600
MAX_TIMEOUT = 7 * 24 * HOUR
"""Seconds a remote run may take over all its attempts; Modal keeps a call's result for about as long."""
VOLUME = "worldsim"


@dataclass(frozen=True)
class Gpu:
    """``H100:2`` -> name ``H100``, count 2. ``str()`` gives Modal's spelling."""

    name: str
    count: int = 1

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.name}:{self.count}"


@dataclass(frozen=True)
class Launch:
    """Launch options.

    Attributes:
        remote: on Modal instead of here.
        gpu: what to rent; None takes the command's default.
        timeout: seconds a remote run may take in all; None takes the command's default.
        detach: return as soon as the run is submitted.
        volume: name of the Modal volume that holds data and runs.
        nproc: processes here (torchrun when more than one); None decides by the GPUs there are.
        yes: do not ask before an expensive run.
        secrets: names of Modal secrets to hand to the run besides the usual ones.
    """

    remote: bool = False
    gpu: Gpu | None = None
    timeout: int | None = None
    detach: bool = False
    volume: str = VOLUME
    nproc: int | None = None
    yes: bool = False
    secrets: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls,
        *,
        remote: bool = False,
        gpu: str | None = None,
        timeout: str | None = None,
        detach: bool = False,
        volume: str | None = None,
        nproc: str | None = "auto",
        yes: bool = False,
        secrets: list[str] | tuple[str, ...] = (),
    ) -> Launch:
        """From command-line texts; a wrong one raises :class:`UserError` naming the option."""
        return cls(
            remote=remote,
            gpu=parse_gpu(gpu) if gpu else None,
            timeout=parse_timeout(timeout) if timeout else None,
            detach=detach,
            volume=volume or VOLUME,
            nproc=parse_nproc(nproc),
            yes=yes,
            secrets=tuple(secrets),
        )


@dataclass(frozen=True)
class Job(Task):
    """A task and where to run it. The worker is handed the task alone."""

    launch: Launch = field(default_factory=Launch)

    @property
    def task(self) -> Task:
        return Task.from_values(self.to_values())


def parse_gpu(text: str) -> Gpu:
    """``H100``, ``H100:2``, ``A100-80GB:4``; whether the name exists is the price table's business."""
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9-]*)(?::(\d+))?", text.strip())
    count = int(match[2] or 1) if match else 0
    if not match or not 1 <= count <= 8:
        raise UserError(f"--gpu {text} is not of the form NAME or NAME:COUNT with a count of 1 to 8", again(gpu="H100:2"))
    return Gpu(match[1].upper(), count)


def parse_timeout(text: str) -> int:
    """``8h``, ``90m``, ``1h30m``, ``600s`` or plain seconds -> seconds, 1 minute to 7 days."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip().lower())
    if not match or not any(match.groups()):
        raise UserError(f"--timeout {text} is not a time such as 8h, 90m or 600s", again(timeout="8h"))
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    total = round(hours * HOUR + minutes * 60 + seconds)
    if not 60 <= total <= MAX_TIMEOUT:
        raise UserError(f"--timeout {text} must lie between 1m and 168h", again(timeout="24h"))
    return total


def parse_nproc(text: str | int | None) -> int | None:
    """``auto`` -> None, else a whole number of at least 1."""
    if text is None or str(text).strip().lower() == "auto":
        return None
    if not str(text).strip().isdigit() or int(text) < 1:
        raise UserError(f"--nproc {text} is neither 'auto' nor a number of at least 1", again(nproc="auto"))
    return int(text)
