"""Trained arms, opened for comparison: which runs there are, whether they may be compared, and the held-out windows they meet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.commands._modality_success import arm_of
from worldsim.commands._policy import open_policy, require_fit
from worldsim.commands._policy_windows import Gathered, Wish, gather, require_windows
from worldsim.core.errors import UserError
from worldsim.core.protocols import EpisodeSource
from worldsim.data import columns
from worldsim.data.policy_windows import PolicyWindows
from worldsim.data.scenes import choose
from worldsim.policies._world_modality_arms import ARMS
from worldsim.policies.world_modality import WorldModality

WARM, TIMED = 3, 20
"""Control steps before the clock runs, and steps that are timed."""


@dataclass
class Trained:
    """One run: its folder and its policy, tokenizer attached."""

    run: Path
    policy: WorldModality

    @property
    def arm(self) -> str:
        return self.policy.card.arm

    @property
    def seed(self) -> int:
        return self.policy.card.seed

    @property
    def fraction(self) -> float:
        return self.policy.card.data_fraction


@dataclass
class Bench:
    """What all runs are measured on.

    Attributes:
        runs: opened. episodes: held-out ids that have a window. notes: remarks about the choice.
        gathered: numbers and columns of held-out and training episodes. train: ids of those that baselines are fitted on:
            the training episodes of the run that was given most of them.
    """

    runs: list[Trained]
    gathered: Gathered
    episodes: list[str]
    train: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def first(self) -> Trained:
        return self.runs[0]

    def windows(self, run: Trained) -> PolicyWindows:
        """The held-out windows, normalised as this run was trained."""
        card = run.policy.card
        return PolicyWindows(card.spec, self.gathered.rows.only(self.episodes), card.scaling)


def open_runs(paths: Sequence[Path], device: str) -> list[Trained]:
    """
    Raises:
        UserError: one is no world-modality policy, two are the same arm, seed and share of data, or they cannot be compared.
    """
    runs = []
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no run {path}", ["worldsim", "train", "--config", "world_modality_c", "DATA"])
        policy = open_policy(path, device=device) if arm_of(path) else None
        if not isinstance(policy, WorldModality):
            raise UserError(
                f"{path} is no world-modality policy", ["worldsim", "train", "--config", "world_modality_c", "DATA"]
            )
        runs.append(Trained(path, policy))
    for run in runs[1:]:
        _comparable(runs[0], run)
    seen: dict[tuple[str, int, float], Path] = {}
    for run in runs:
        key = (run.arm, run.seed, run.fraction)
        if key in seen:
            raise UserError(f"{seen[key]} and {run.run} are the same arm {run.arm} with the same seed {run.seed}")
        seen[key] = run.run
    return runs


def _comparable(one: Trained, other: Trained) -> None:
    """Windows, tokens and actions must be the same, or nothing is paired."""
    a, b = one.policy.card, other.policy.card
    for what, mine, theirs in (
        ("windows (context, horizon, future)", a.spec, b.spec),
        ("the codebook", a.tokenizer["codebook_hash"], b.tokenizer["codebook_hash"]),
        ("cameras", a.cameras, b.cameras),
        ("the dataset they were trained on", a.dataset, b.dataset),
        ("the training episodes they were drawn from", set(a.held_out_episodes), set(b.held_out_episodes)),
    ):
        if mine != theirs:
            raise UserError(f"{one.run} and {other.run} cannot be compared: they differ in {what}")
    a.action_spec.require(b.action_spec, mine=str(one.run), theirs=str(other.run))


def left_by_training(folder: Path, seeds: int, data: str | None) -> list[Path]:
    """The run folders ``<arm>-<seed>`` below what ``train --config world_modality_all`` left: every arm there is, the first
    ``seeds`` seeds of each.

    Raises:
        UserError: no such folder, no arm in it, or an arm has fewer seeds.
    """
    make: list[object] = ["worldsim", "train", "--config", "world_modality_all", data or "DATA", "--set", f"seeds={seeds}"]
    inner = folder / "runs" if (folder / "runs").is_dir() else folder
    if not inner.is_dir():
        raise UserError(f"there is no folder of runs {folder}", make)
    found: dict[str, set[int]] = {}
    for path in inner.iterdir():
        arm, _, seed = path.name.rpartition("-")
        if arm in ARMS and seed.isdigit() and (path / "checkpoint").is_dir():
            found.setdefault(arm, set()).add(int(seed))
    if not found:
        raise UserError(f"{inner} holds no run of an arm (A-0, C-2, …)", make)
    for arm, there in sorted(found.items()):
        if len(there) < seeds:
            known = ", ".join(str(seed) for seed in sorted(there))
            raise UserError(f"{inner} has {len(there)} of {seeds} seeds of arm {arm} ({known})", make)
    return [inner / f"{arm}-{seed}" for arm in ARMS if arm in found for seed in sorted(found[arm])[:seeds]]


def bench(
    runs: list[Trained],
    data: Path,
    root: Path,
    source: EpisodeSource,
    episodes: str | None,
    device: str,
    *,
    batch: int,
    max_rejected: int,
    command: str,
) -> Bench:
    """Choose held-out episodes and read what all runs need of them.

    Raises:
        UserError: an episode was trained on, there is none, none has a window, or cameras, state, actions or rate are others
            than the runs'.
    """
    card, notes = runs[0].policy.card, list[str]()
    indices, split = choose(source.card, source.ids(), episodes)
    names = [source.ids()[index] for index in indices]
    same = card.dataset in ("", columns.dataset_fingerprint(data))
    most = max(runs, key=lambda run: run.fraction).policy.card
    known = set(source.ids())
    train = [name for name in most.train_episodes if name in known] if same else split.train
    trained = sorted(set(names) & {name for run in runs for name in run.policy.card.train_episodes}) if same else []
    if trained:
        raise UserError(
            f"{len(trained)} of the episodes were trained on, the first is {trained[0]}: their error says nothing",
            ["worldsim", *command.split(), str(data), "--model", str(runs[0].run)],
        )
    if not same:
        notes.append(f"the runs were trained on other data than {data}; its held-out episodes are scored")
    _require_cameras(runs[0], source, data)
    wish = Wish(data, root, card.camera, batch, max_rejected, command)
    tokenizer: Any = runs[0].policy.tokenizer
    gathered = gather(wish, source, tokenizer, device, [*names, *train])
    require_fit(card.needs, gathered, str(runs[0].run), str(data))
    if card.cameras != gathered.cameras:
        notes.append(f"the runs' camera size is {card.cameras}, this dataset's is {gathered.cameras}")
    windows = PolicyWindows(card.spec, gathered.rows.only([n for n in names if n in gathered.rows.actions]), card.scaling)
    require_windows(len(windows), gathered, card.spec, data)
    notes += [f"episode {name} is left out: {reason}" for name, reason in gathered.rejected.items()]
    short = len([name for name in names if name in gathered.rows.actions]) - len(windows.episodes)
    if short:
        notes.append(f"{short} held-out episodes are too short for a window")
    return Bench(runs, gathered, windows.episodes, [name for name in train if name in gathered.rows.tokens], notes)


def _require_cameras(run: Trained, source: EpisodeSource, data: Path) -> None:
    """
    Raises:
        UserError: the data lacks a camera that the runs see.
    """
    known = source.card.camera_names
    lacking = [name for name in run.policy.card.cameras if name not in known]
    if lacking:
        raise UserError(
            f"{run.run} sees a camera '{lacking[0]}', {data} has {', '.join(known) or 'none'}",
            ["worldsim", "tokenize-world", data, "--tokenizer", "kmeans"],
        )


def milliseconds(run: Trained, source: EpisodeSource, episode: str) -> float | None:
    """Median time of a control step with the encoder, on frames of ``episode``; None for an arm that cannot act."""
    card = run.policy.card
    if run.policy.net.arm.memory == "true":
        return None
    found = source.episode(source.ids().index(episode))
    count = min(found.num_frames, 8)
    views = {name: found.frames[name].rows(np.arange(count)) for name in card.cameras}
    run.policy.reset()
    times = []
    for k in range(WARM + TIMED):
        at = k % count
        shown: dict[str, Any] = {"pixels": {name: frames[at] for name, frames in views.items()}}
        if card.state_names and found.states is not None:
            shown["agent_pos"] = found.states[at]
        began = time.perf_counter()
        run.policy.act(shown)
        times.append(time.perf_counter() - began)
    run.policy.reset()
    return 1000 * float(np.median(times[WARM:]))
