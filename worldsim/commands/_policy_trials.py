"""One trial of a policy, and the book in which trials are kept: a file per trial, so that a killed run goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.core.files import read_json, replacing, write_json
from worldsim.core.protocols import Environment, Policy
from worldsim.rollout import rollout


@dataclass
class Trial:
    """
    Attributes:
        solved_at: steps until success was first seen; None where it never was. steps: all that were taken.
        policy_seconds: spent in the policy. env_seconds: in the environment.
        frames: camera -> uint8 ``[steps + 1, H, W, 3]``; not kept in the record.
    """

    seed: int
    steps: int
    solved_at: int | None
    policy_seconds: float
    env_seconds: float
    frames: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def success(self) -> bool:
        return self.solved_at is not None


class _Timed:
    """A policy with a stop-watch."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.seconds = policy, 0.0

    def reset(self, seed: int | None = None) -> None:
        self.policy.reset(seed)

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        begun = time.perf_counter()
        rows = self.policy.act(observation)
        self.seconds += time.perf_counter() - begun
        return rows


def attempt(env: Environment, policy: Policy, seed: int, steps: int, stop_on_success: bool) -> Trial:
    """One episode through ``worldsim.rollout``."""
    timed, begun = _Timed(policy), time.perf_counter()
    recorder = rollout(env, timed, seed=seed, steps=steps, stop_on_success=stop_on_success)
    whole = time.perf_counter() - begun
    frames = {name: np.stack(views) for name, views in recorder.pixels.items()}
    return Trial(seed, len(recorder.actions), recorder.solved_at, timed.seconds, whole - timed.seconds, frames)


class Book:
    """``episodes/<policy>/<seed>.json`` and ``films/<policy>/<seed>.npz`` of one run.

    Args:
        out: the run folder. names: the policies. seeds: the trials, the same for all.
    """

    def __init__(self, out: Path, names: Sequence[str], seeds: Sequence[int]) -> None:
        self.out, self.seeds = out, list(seeds)
        self.folders = {name: f"{k}-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')[-40:]}" for k, name in enumerate(names)}

    def _record(self, name: str, seed: int) -> Path:
        return self.out / "episodes" / self.folders[name] / f"{seed}.json"

    def _film(self, name: str, seed: int) -> Path:
        return self.out / "films" / self.folders[name] / f"{seed}.npz"

    def has(self, name: str, seed: int, *, film: bool) -> bool:
        return self._record(name, seed).is_file() and (not film or self._film(name, seed).is_file())

    def write(self, name: str, trial: Trial, *, film: bool) -> None:
        """The film first: a record says that a trial is finished."""
        if film:
            with replacing(self._film(name, trial.seed)) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **trial.frames)  # type: ignore[arg-type]
        record = {key: value for key, value in asdict(trial).items() if key != "frames"}
        write_json(self._record(name, trial.seed), {"policy": name, **record})

    def trials(self, name: str) -> list[Trial]:
        """In the order of the seeds."""
        out = []
        for seed in self.seeds:
            record = read_json(self._record(name, seed))
            out.append(Trial(**{key: value for key, value in record.items() if key != "policy"}))
        return out

    def film(self, name: str, seed: int) -> np.ndarray:
        """Its cameras one above the other, uint8 ``[T, H, W, 3]``."""
        with np.load(self._film(name, seed)) as views:
            return np.concatenate([views[key] for key in sorted(views)], axis=1)
