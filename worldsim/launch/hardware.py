"""What each command needs: which commands share work between processes, which want a GPU, and how long to rent it."""

from __future__ import annotations

from dataclasses import dataclass

HOUR = 3600
ATTEMPT_SECONDS = 24 * HOUR
"""Longest attempt that Modal allows. source: modal 1.6.4, ``App.function(timeout=…)``"""
GRACE_SECONDS = 600
"""How far the platform's limit lies above a run's own budget, so that the run can save before it is stopped."""


@dataclass(frozen=True)
class Need:
    """A command's appetite.

    Attributes:
        gpu: what to rent when ``--gpu`` is not given; None runs on a CPU container.
        timeout: seconds a remote run may take when ``--timeout`` is not given.
        distributed: whether it shares work between processes.
        cpus, memory_gib: a container's cores and memory.
    """

    gpu: str | None = None
    timeout: int = 2 * HOUR
    distributed: bool = False
    cpus: float = 4.0
    memory_gib: float = 16.0


NEEDS: dict[str, Need] = {
    "convert": Need(cpus=8.0),
    "models-pull": Need(),
    "models-export": Need(memory_gib=64.0),
    "extract-latents": Need("L40S", 4 * HOUR, distributed=True),
    "tokenize-world": Need("L40S", 4 * HOUR, distributed=True),
    "train": Need("H100", 8 * HOUR, distributed=True, cpus=8.0, memory_gib=64.0),
    "finetune-wan": Need("H100", 8 * HOUR, distributed=True, cpus=8.0, memory_gib=64.0),
    "rlvr": Need("H100", 8 * HOUR, distributed=True, cpus=8.0, memory_gib=64.0),
    "infer": Need("H100", 4 * HOUR, memory_gib=64.0),
    "eval-video": Need("L40S", 2 * HOUR, memory_gib=32.0),
    "eval-policy": Need("L40S", 4 * HOUR, cpus=8.0, memory_gib=32.0),
    "eval-offline": Need("L40S", 2 * HOUR, memory_gib=32.0),
    "eval-intervene": Need("L40S", 2 * HOUR, memory_gib=32.0),
}
"""By command."""
RECIPES: dict[tuple[str, str], Need] = {}
"""By (command, recipe), where a recipe wants something else than its command."""


def need(command: str, recipe: str = "default") -> Need:
    """What a command (and a recipe of it) needs; an unlisted command gets a plain CPU container."""
    if recipe == "smoke":  # every command's smoke recipe runs in seconds on a CPU
        known = NEEDS.get(command, Need())
        return Need(None, HOUR // 2, known.distributed)
    return RECIPES.get((command, recipe)) or NEEDS.get(command, Need())


def is_distributed(command: str) -> bool:
    return NEEDS.get(command, Need()).distributed
