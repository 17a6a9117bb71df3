"""Policies written by hand: noise, waypoints, a pushing heuristic, Metaworld's experts, sine waves."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from worldsim.core.errors import UserError, did_you_mean
from worldsim.core.protocols import Environment, Policy, SupportsMotion
from worldsim.core.registry import register

CARD = {
    "title": "Scripted policies: random, wander, push, expert, sine",
    "source": "worldsim",
    "size": "0",
    "license": "Apache-2.0",
}


@register("policies")
class Scripted:
    """The shelf's entry: ``create("push", env, noise=0.2)``."""

    @classmethod
    def names(cls) -> list[str]:
        return sorted(_KINDS)

    @classmethod
    def create(cls, name: str, env: Environment, **options: Any) -> Policy:
        """The scripted policy ``name`` for ``env``; raises when that environment cannot serve it."""
        if name not in _KINDS:
            raise UserError(f"there is no scripted policy '{name}'{did_you_mean(name, _KINDS)}")
        known = _options(_KINDS[name])
        for key, value in options.items():
            if key not in known:
                raise UserError(f"the scripted policy '{name}' has no option '{key}'{did_you_mean(key, known)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise UserError(f"scripted:{name}: {key}={value} is not a number from 0")
        if options.get("rate", 0) > 1:
            raise UserError(f"scripted:{name}: rate={options['rate']} is not between 0 and 1")
        return _KINDS[name](env, **options)

    @classmethod
    def tiny(cls, env: Environment) -> Policy:
        return cls.create("random", env)


class OrnsteinUhlenbeck:
    """Smooth noise with mean 0 and standard deviation 1 per entry: ``x' = x - rate * x + sqrt(rate * (2 - rate)) * n``.

    Args:
        rate: how fast it forgets, 0..1 per step; 1 is white noise.
    """

    def __init__(self, dim: int, rate: float) -> None:
        self.dim, self.rate = dim, rate

    def reset(self, rng: np.random.Generator) -> None:
        self.rng, self.value = rng, rng.standard_normal(self.dim)

    def next(self) -> np.ndarray:
        kick = np.sqrt(self.rate * (2 - self.rate)) * self.rng.standard_normal(self.dim)
        self.value = (1 - self.rate) * self.value + kick
        return self.value


class _Boxed:
    """What all have in common: an action box, a seed, rows clipped to the box.

    Args:
        noise: standard deviation of smooth noise added to every action, as a part of half the action range.
        rate: how fast the noise forgets, 0..1 per step.

    Attributes:
        blind: whether it reads nothing of what it observes, so that its actions can be known beforehand.
    """

    blind = False

    def __init__(self, env: Environment, *, noise: float = 0.0, rate: float = 0.25) -> None:
        self.env, self.noise = env, noise
        self.low, self.high = env.action_space.low.astype(np.float64), env.action_space.high.astype(np.float64)
        self.middle, self.half = (self.low + self.high) / 2, (self.high - self.low) / 2
        self.walk = OrnsteinUhlenbeck(len(self.low), rate)

    def reset(self, seed: int | None = None) -> None:
        words = None if seed is None else [seed, 0x5EED]  # another stream than the environment's own of the same seed
        self.rng = np.random.default_rng(words)
        self.walk.reset(self.rng)
        self.begin()

    def fork(self) -> _Boxed:
        """Another of the same kind, of the same environment; everything else that an episode changes is set by ``begin``."""
        twin = copy.copy(self)
        twin.walk = OrnsteinUhlenbeck(self.walk.dim, self.walk.rate)
        return twin

    def begin(self) -> None:
        """Forget the last episode."""

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        row = np.asarray(self.row(observation), np.float64) + self.noise * self.half * self.walk.next()
        return np.clip(row, self.low, self.high).astype(np.float32)[None]

    def row(self, observation: Mapping[str, Any]) -> np.ndarray:
        raise NotImplementedError


class Random(_Boxed):
    """Ornstein-Uhlenbeck noise around the middle of the action box: smooth, aimless, covers the space."""

    blind = True

    def __init__(self, env: Environment, *, noise: float = 0.5, rate: float = 0.25) -> None:
        super().__init__(env, noise=noise, rate=rate)

    def row(self, observation: Mapping[str, Any]) -> np.ndarray:
        return self.middle


class Sine(_Boxed):
    """One slow sine wave per action entry, with its own period (2 to 6 s) and phase: a robot's first movement test."""

    blind = True

    def begin(self) -> None:
        self.step = 0
        self.phase = self.rng.uniform(0, 2 * np.pi, len(self.low))
        self.period = self.rng.uniform(2, 6, len(self.low)) * self.env.fps

    def row(self, observation: Mapping[str, Any]) -> np.ndarray:
        self.step += 1
        return self.middle + 0.8 * self.half * np.sin(2 * np.pi * self.step / self.period + self.phase)


class _Steered(_Boxed):
    """Steers an agent by wanted velocities, whatever the environment's action space is.

    Args:
        speed: cruising speed in workspace sides (their mean) per second.
    """

    def __init__(self, env: Environment, *, noise: float = 0.1, rate: float = 0.25, speed: float = 0.6) -> None:
        super().__init__(env, noise=noise, rate=rate)
        if not isinstance(env, SupportsMotion):
            raise UserError("the scripted policies 'wander' and 'push' need an environment whose agent can be steered")
        self.steering, self.floor, self.ceiling = env, np.asarray(env.low), np.asarray(env.high)
        self.side = float((self.ceiling - self.floor).mean())
        self.speed = speed * self.side

    def here(self, observation: Mapping[str, Any]) -> np.ndarray:
        return observation["agent_pos"][: len(self.floor)].astype(np.float64)

    def toward(self, here: np.ndarray, there: np.ndarray, speed: float) -> np.ndarray:
        """The action that moves from ``here`` to ``there`` in a straight line, without overshoot."""
        offset = there - here
        pace = min(speed, float(np.linalg.norm(offset)) * self.env.fps * 0.5)
        return self.steering.action_for(offset / (np.linalg.norm(offset) + 1e-9) * pace)


class Wander(_Steered):
    """From one random point to the next at random speeds: fast, and all over the workspace.

    In a plane with a block, every third point lies at the block, so that it is pushed often. An entry that does not move
    the agent (a gripper) is -1 or 1 of its range, drawn anew at each point.
    """

    def begin(self) -> None:
        self.goal: np.ndarray = np.zeros(len(self.floor))
        self.left = self.turn = 0

    def row(self, observation: Mapping[str, Any]) -> np.ndarray:
        here = self.here(observation)
        if self.left == 0 or np.linalg.norm(self.goal - here) < 0.03 * self.side:
            self.pick(observation)
        self.left -= 1
        row = np.array(self.toward(here, self.goal, self.pace), np.float64)
        row[len(self.floor) :] = self.grip
        return row

    def pick(self, observation: Mapping[str, Any]) -> None:
        margin = 0.12 * self.side
        self.goal = self.rng.uniform(self.floor + margin, self.ceiling - margin)
        if self.turn % 3 == 1 and len(self.floor) == 2:
            self.goal = observation["environment_state"][:2] + self.rng.normal(0, 0.06 * self.side, 2)
        extra = slice(len(self.floor), None)
        self.grip = self.middle[extra] + self.half[extra] * self.rng.choice([-1.0, 1.0])
        self.pace = self.speed * self.rng.uniform(0.6, 1.4)
        self.turn, self.left = self.turn + 1, int(self.rng.integers(8, 20))


class Push(_Steered):
    """Circles the block of a plane to the side away from the goal, then pushes through it; a heuristic, not a solver."""

    def __init__(self, env: Environment, **options: Any) -> None:
        super().__init__(env, **options)
        if len(self.floor) != 2:
            raise UserError("the scripted policy 'push' needs a plane with a block: pusht")

    def row(self, observation: Mapping[str, Any]) -> np.ndarray:
        here = self.here(observation)
        block, goal = np.split(observation["environment_state"].astype(np.float64), 2)
        way, out = goal[:2] - block[:2], here - block[:2]
        bearing, behind = np.arctan2(out[1], out[0]), np.arctan2(-way[1], -way[0])
        turn = (behind - bearing + np.pi) % (2 * np.pi) - np.pi
        if abs(turn) < 0.35:
            return self.toward(here, goal[:2], self.speed)
        angle = bearing + np.clip(turn, -0.7, 0.7)
        around = block[:2] + 0.27 * self.side * np.array([np.cos(angle), np.sin(angle)])
        margin = 0.1 * self.side
        return self.toward(here, np.clip(around, self.floor + margin, self.ceiling - margin), self.speed)


class Expert(_Boxed):
    """Metaworld's own expert of the task, with noise. Slowed where a step holds its action for several native steps.

    source: metaworld.policies.ENV_POLICY_MAP. Its gains are meant for 80 Hz; held for 8 native steps they overshoot, so
    displacements are multiplied by ``min(1, 4 / repeat)``, which keeps all tasks tried at full success without noise.
    """

    def __init__(self, env: Environment, *, noise: float = 0.0, rate: float = 0.25) -> None:
        super().__init__(env, noise=noise, rate=rate)
        task = getattr(env, "task", None)
        try:
            from metaworld.policies import ENV_POLICY_MAP
        except ImportError as error:
            raise UserError(f"the expert needs the simulators: {error}", "pip install 'worldsim[sim]'") from error
        if task not in ENV_POLICY_MAP:
            raise UserError("the scripted policy 'expert' needs a Metaworld task: metaworld:reach-v3 and its like")
        self.make, self.gain = ENV_POLICY_MAP[task], min(1.0, 4.0 / getattr(env, "repeat", 1))

    def begin(self) -> None:
        self.expert = self.make()

    def row(self, observation: Mapping[str, Any]) -> np.ndarray:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns on every step that the environment will clip; so do we
            action = np.asarray(self.expert.get_action(observation["environment_state"]), np.float64)
        return np.concatenate([np.clip(action[:3] * self.gain, -1, 1), action[3:]])


def _options(kind: type[_Boxed]) -> list[str]:
    """What may stand behind the policy's name: the keyword-only arguments of it and of what it is built on."""
    signatures = [inspect.signature(base.__init__) for base in kind.__mro__ if issubclass(base, _Boxed)]
    return list(
        dict.fromkeys(p.name for found in signatures for p in found.parameters.values() if p.kind is p.KEYWORD_ONLY)
    )


_KINDS: dict[str, type[_Boxed]] = {"random": Random, "wander": Wander, "push": Push, "expert": Expert, "sine": Sine}
