"""Policies ready to act: fetched, opened with what their shelf may not import, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from worldsim import policies, tokenizers
from worldsim.commands import _hub
from worldsim.core import registry
from worldsim.core.errors import UserError, again
from worldsim.core.protocols import Environment, LearnedPolicy, Policy
from worldsim.core.types import ActionSpec, PolicyNeeds
from worldsim.formats import open_dataset

ROUNDING = 1e-3
"""Relative difference of two rates that is none: 30 Hz and 29.97 Hz are two."""


class World(Protocol):
    """What a policy is compared with: the numbers of an environment or a robot.

    Attributes:
        cameras: (robots) camera name -> (height, width); environments say it in ``observation_space["pixels"]``.
    """

    fps: float
    action_spec: ActionSpec
    state_names: tuple[str, ...]


def open_policy(
    text: str | Path,
    env: Environment | None = None,
    device: str = "cpu",
    *,
    rename: Mapping[str, str] | None = None,
    fit: bool = True,
) -> Policy:
    """The policy that ``text`` names (``policies.load``), its tokenizer attached, fetched from the Hub where it is a REPO.

    Args:
        rename: the policy's camera -> the environment's, where their names differ.
        fit: whether a learned policy is compared with ``env`` (:func:`require_fit`).

    Raises:
        UserError: there is no such policy, or it does not fit.
    """
    text = _fetched(str(text))
    policy = policies.load(
        text, env=env, device=device, tokenizer_loader=tokenizers.load, open_dataset=lambda path: open_dataset(path)
    )
    if rename:
        if not isinstance(policy, LearnedPolicy):
            raise UserError(f"rename: the policy {text} sees no cameras by name")
        policy = policies.Renamed(policy, rename)
    if fit and env is not None and isinstance(policy, LearnedPolicy):
        require_fit(policy.needs, env, text, title(env))
    return policy


def _fetched(text: str) -> str:
    """A name of the Hub (``owner/name`` where no such folder is) becomes the folder that it was downloaded to."""
    hub = text.count("/") == 1 and ":" not in text and text[0].isalnum() and not Path(text).parent.exists()
    return str(_hub.cached(text, kind="model") or _hub.download(text, kind="model")) if hub else text


def title(env: Any) -> str:
    """An environment in words: ``metaworld:reach-v3``."""
    spec = getattr(env, "task", None)
    name = type(env).__name__.lower()
    return f"{name}:{spec}" if isinstance(spec, str) else name


def is_known(text: str) -> bool:
    """Whether ``text`` names a kind of policy (``scripted:…``) rather than a folder."""
    return text.partition(":")[0] in registry.names("policies")


def cameras_of(world: Any) -> dict[str, tuple[int, int]]:
    """Camera name -> (height, width) of what an environment or a robot shows."""
    told = getattr(world, "cameras", None)
    if isinstance(told, Mapping):
        return {name: (int(size[0]), int(size[1])) for name, size in told.items()}
    shown = world.observation_space["pixels"].spaces
    return {name: (box.shape[0], box.shape[1]) for name, box in shown.items()}


def require_fit(needs: PolicyNeeds, world: World, mine: str, theirs: str) -> None:
    """Refuse a learned policy where its numbers would mean something else: cameras, state, actions and rate, by name.

    What the policy does not know of itself (LeRobot folders name neither entries nor rate) is compared by width only.

    Args:
        mine: the policy, in words. theirs: the environment or robot, in words.

    Raises:
        UserError: naming the first difference.
    """
    _cameras(needs, world, mine, theirs)
    _states(needs, world, mine, theirs)
    spec = needs.action_spec if needs.fps else replace(needs.action_spec, rate=world.action_spec.rate)
    if needs.fps and abs(needs.fps - world.fps) > ROUNDING * needs.fps:
        raise UserError(f"{mine} was trained on {needs.fps:g} observations per second, {theirs} gives {world.fps:g}")
    spec.require(replace(world.action_spec, rate=spec.rate), mine=mine, theirs=theirs)
    for name, own, other in zip(world.action_spec.names, spec.units, world.action_spec.units):
        if own != other and "?" not in (own, other):
            raise UserError(f"the action '{name}' of {mine} is in {own}, that of {theirs} in {other}")


def _cameras(needs: PolicyNeeds, world: World, mine: str, theirs: str) -> None:
    if not needs.cameras:
        return
    have = cameras_of(world)
    missing = [name for name in needs.cameras if name not in have]
    if missing:
        free = sorted(set(have) - set(needs.cameras)) or sorted(have)
        raise UserError(
            f"{mine} sees a camera '{missing[0]}', {theirs} shows {', '.join(sorted(have)) or 'none'}",
            again({f"rename.{missing[0]}": free[0]}) if free else None,
        )


def _states(needs: PolicyNeeds, world: World, mine: str, theirs: str) -> None:
    own, other = tuple(needs.state_names), tuple(world.state_names)
    if own and len(own) != len(other):
        raise UserError(
            f"{mine} reads a state of {len(own)} numbers, {theirs} has {len(other)}: {', '.join(other) or 'none'}"
        )
    if own and own != other and _named(own) and _named(other):
        raise UserError(f"{mine} reads the state {', '.join(own)}, {theirs} has {', '.join(other)}")


def _named(names: tuple[str, ...]) -> bool:
    """Whether somebody gave names; ``state_0 …`` stands for none."""
    return names != tuple(f"state_{k}" for k in range(len(names)))
