"""``--actions policy:NAME``: which policy that is, and whether it has what it needs in a dream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from worldsim import policies
from worldsim.commands._closed_loop import ClosedLoop, OpenLoop
from worldsim.core import registry
from worldsim.core.config import parse_overrides
from worldsim.core.errors import UserError, again, did_you_mean
from worldsim.core.protocols import Environment, EpisodeSource, Policy
from worldsim.core.types import ActionSpec, DatasetCard
from worldsim.data import scenes
from worldsim.data.cameras import split_names
from worldsim.data.scenes import SceneSpec
from worldsim.data.stats import stats_of

PREFIX = "policy:"
MEASURED = 256
"""Episodes, at most, whose actions are read to learn what a policy may do; evenly over the training part."""
State = Literal["auto", "targets", "start"]
STATES = ("auto", "targets", "start")


@dataclass(frozen=True)
class Wanted:
    """``policy:NAME,key=value``, taken apart.

    Attributes:
        name: of a scripted policy, or a folder that holds a LeRobot policy.
        state: where a policy that reads the robot's state gets it from: ``targets`` are the actions themselves (position
            control), ``start`` is the recorded start for ever, ``auto`` is targets where the dataset says that its actions
            are absolute joint targets.
        options: the policy's own.
    """

    name: str
    state: State = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> Wanted:
        """
        Raises:
            UserError: an option that is not of the form key=value, or an unknown ``state``.
        """
        name, *pairs = text.removeprefix(PREFIX).split(",")
        options = parse_overrides(pairs)
        state = options.pop("state", "auto")
        if state not in STATES:
            raise UserError(f"--actions {text}: state={state} is not one of {', '.join(STATES)}")
        return cls(name, state, options)

    @property
    def is_folder(self) -> bool:
        return Path(self.name).is_dir()


@dataclass(frozen=True)
class Stage:
    """What a scripted policy knows of its environment (``core.protocols.Environment``), here from a dataset alone.

    Attributes:
        fps: action rows per second. action_space: the range of the dataset's own actions.
    """

    fps: float
    action_spec: ActionSpec
    state_names: tuple[str, ...]
    task_description: str
    action_space: Any


def stage_of(source: EpisodeSource, name: str) -> Stage:
    """The dataset as a stage: actions range from the least to the greatest that its training episodes recorded.

    Raises:
        UserError: the dataset has no actions.
    """
    import gymnasium

    card, ids = source.card, source.ids()
    if card.actions is None:
        raise UserError(f"{name} has no actions, so there is no telling which a policy may choose", "worldsim doctor DATA")
    train = scenes.choose(card, ids, "all")[1].train
    at = {episode: number for number, episode in enumerate(ids)}
    some = [train[k] for k in np.unique(np.linspace(0, len(train) - 1, min(MEASURED, len(train))).round().astype(int))]
    recorded = ((episode, source.episode(at[episode]).actions) for episode in some)
    stats = stats_of((episode, rows) for episode, rows in recorded if rows is not None)
    box = gymnasium.spaces.Box(stats.min.astype(np.float32), stats.max.astype(np.float32), dtype=np.float32)
    return Stage(card.fps, card.actions, tuple(card.state_names or ()), "", box)


def scripted(wanted: Wanted, stage: Stage) -> Policy:
    """A scripted policy on that stage.

    Raises:
        UserError: there is none of that name, or it needs a simulator.
    """
    shelf, _, rest = wanted.name.rpartition(":")
    shelf, known = shelf or "scripted", registry.get("policies", shelf or "scripted").names()
    if rest not in known:
        raise UserError(
            f"--actions policy:{wanted.name}: there is no such policy and no such folder{did_you_mean(rest, known)}",
            again(actions="policy:random"),
        )
    try:
        return policies.create(f"{shelf}:{rest}", cast(Environment, stage), **wanted.options)
    except TypeError as error:
        raise UserError(f"--actions policy:{wanted.name}: {error}") from error
    except UserError as error:
        raise UserError(
            f"--actions policy:{wanted.name}: a dream is no simulator: {error.sentence}",
            again(actions="policy:random"),
        ) from error


def make(
    text: str,
    source: EpisodeSource,
    view: SceneSpec,
    seed: int,
    device: str,
    note: Callable[[str], None],
) -> OpenLoop | ClosedLoop:
    """The policy that ``policy:NAME`` names, ready to choose actions.

    Args:
        view: what the dream shows. note: where remarks for the user go.

    Raises:
        UserError: there is no such policy, or it needs what a dream does not have.
    """
    wanted, card = Wanted.read(text), source.card
    if wanted.is_folder:
        return _saved(wanted, source, view, seed, device, note)
    stage = stage_of(source, card.name)
    policy = scripted(wanted, stage)
    if getattr(policy, "blind", False):
        return OpenLoop(policy, seed)
    cameras, follows = (
        split_names(view.camera, card.camera_names),
        state_follows(card, wanted.state, f"{PREFIX}{wanted.name}"),
    )
    return ClosedLoop(lambda: scripted(wanted, stage), cameras, seed, view.history, follows)


def _saved(
    wanted: Wanted, source: EpisodeSource, view: SceneSpec, seed: int, device: str, note: Callable[[str], None]
) -> ClosedLoop:
    from worldsim.commands import _dream_policy as dream

    if wanted.options:
        raise UserError(f"--actions {PREFIX}{wanted.name}: a saved policy has no option '{next(iter(wanted.options))}'")
    card, cameras = source.card, split_names(view.camera, source.card.camera_names)
    network = dream.load(wanted.name, device, seed)
    sizes = dream.sizes_of(network, card, cameras)
    if network.checkpoint.state_dim() is not None:
        require_state(wanted, card, f"the policy {wanted.name}")
    if view.size is not None:
        remark = dream.crop_note(sizes, view.size[0] // len(cameras), view.size[1])
        if remark:
            note(remark)
    follows = state_follows(card, wanted.state, f"{PREFIX}{wanted.name}")
    return ClosedLoop(lambda: dream.DreamPolicy(network, sizes), cameras, seed, view.history, follows)


def state_follows(card: DatasetCard, state: State, who: str = f"{PREFIX}random") -> bool:
    """Whether a dream's robot state is the last action row; else it stays what it was at the start."""
    spec, width = card.actions, len(card.state_names or ())
    if state == "targets":
        if spec is None or spec.dim != width:
            raise UserError(
                f"state=targets: an action has {spec.dim if spec else 0} numbers and the robot's state {width}, so the one "
                "cannot stand for the other",
                again({"actions": f"{who},state=start"}),
            )
        return True
    return state == "auto" and absolute_joints(card)


def absolute_joints(card: DatasetCard) -> bool:
    """Whether the robot's state after a step is the action row: absolute joint targets, one per number of the state."""
    spec = card.actions
    return (
        spec is not None
        and spec.mode == "absolute"
        and spec.space == "joint"
        and spec.scale is None
        and spec.dim == len(card.state_names or ())
    )


def require_state(wanted: Wanted, card: DatasetCard, who: str) -> None:
    """Refuse a policy that reads the robot's state where a dream cannot know it.

    Raises:
        UserError: naming what is missing.
    """
    if card.state_names is None:
        raise UserError(f"{who} reads the robot's state, and the dataset {card.name} has none", "worldsim doctor DATA")
    if wanted.state == "auto" and not absolute_joints(card):
        spec = card.actions
        told = f"{spec.mode} {spec.space}" if spec else "no"
        raise UserError(
            f"{who} reads the robot's state, which a dream does not show; it can be followed only where actions are absolute "
            f"joint targets, and those of {card.name} are {told} actions (worldsim.json: actions.mode, actions.space)",
            again(actions=f"{PREFIX}{wanted.name},state=targets"),
        )
