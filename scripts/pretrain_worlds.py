"""What the bundled base is trained on: simulated worlds as arrays, and clips drawn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from worldsim import envs, policies
from worldsim.core.console import track
from worldsim.core.files import replacing
from worldsim.rollout import SimulatedSource

FILES = ("frames.npy", "actions.npy")
TRAIN_SEED, HELD_OUT_SEED = 1_000_000, 2_000_000
"""Of the first episode: far from each other, and from the demo's seeds, which begin at 0."""
SEEDS_PER_WORLD = 100_000


def simulate_worlds(
    recipe: dict[str, Any],
    out: Path,
    only: list[str] | None = None,
    *,
    first_seed: int = TRAIN_SEED,
    most: int | None = None,
) -> None:
    """One folder per world: ``frames.npy`` uint8 ``[E, T, H, W, 3]`` and ``actions.npy`` float32 ``[E, T - 1, A]``.

    Args:
        only: the names of those to simulate.
        first_seed: of the first world's first episode.
        most: episodes per world at most.
    """
    for number, (name, world) in enumerate(recipe["worlds"].items()):
        if (only is None or name in only) and not all((out / name / file).exists() for file in FILES):
            count = min(world["episodes"], most or world["episodes"])
            seeds = range(first_seed + SEEDS_PER_WORLD * number, first_seed + SEEDS_PER_WORLD * number + count)
            with replacing(out / name) as folder:
                folder.mkdir(parents=True)
                _simulate(name, world, recipe, folder, seeds)


def _simulate(name: str, world: dict[str, Any], recipe: dict[str, Any], folder: Path, seeds: range) -> None:
    simulator = envs.make(world["env"], **world["options"])
    actors = {text: policies.load(text, env=simulator) for text in world["policies"]}
    steps = recipe["steps_per_episode"]
    source = SimulatedSource(simulator, actors, seeds, steps, name=name)
    shape = (len(seeds), steps + 1, recipe["size"], recipe["size"], 3)
    frames = np.lib.format.open_memmap(folder / FILES[0], "w+", np.uint8, shape)
    actions = []
    for index in track(range(len(seeds)), f"simulate {name}", unit="episodes"):
        episode = source.episode(index)
        (stream,) = episode.frames.values()
        frames[index] = stream.read()
        assert episode.actions is not None
        actions.append(episode.actions)
    frames.flush()
    np.save(folder / FILES[1], np.stack(actions).astype(np.float32))
    simulator.close()


class Worlds:
    """Clips of every world, drawn by (seed, step): a batch is of one world, and so of one space of actions.

    Args:
        scales: (mean, standard deviation) of each space's rows; those of these worlds when None.
    """

    def __init__(self, recipe: dict[str, Any], folder: Path, scales: dict[str, Any] | None = None) -> None:
        self.recipe, self.names = recipe, list(recipe["worlds"])
        self.spaces = [recipe["worlds"][name]["space"] for name in self.names]
        shares = np.array([recipe["worlds"][name]["share"] for name in self.names])
        self.shares = shares / shares.sum()
        self.frames = [np.load(folder / name / FILES[0], mmap_mode="r") for name in self.names]
        self.actions = [np.load(folder / name / FILES[1]) for name in self.names]
        self.scales = scales or {space: self._scale(space) for space in set(self.spaces)}

    def _scale(self, space: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of a space's rows."""
        own = [a.reshape(-1, a.shape[-1]) for a, s in zip(self.actions, self.spaces) if s == space]
        rows = np.concatenate(own)
        return rows.mean(0), rows.std(0) + 1e-6

    def dims(self) -> dict[str, int]:
        """Space -> A."""
        return {space: actions.shape[-1] for space, actions in zip(self.spaces, self.actions)}

    def clips(self, world: int, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 ``[count, F, H, W, 3]`` and normalised float32 ``[count, F - 1, A]``."""
        frames, actions, length = self.frames[world], self.actions[world], self.recipe["frames"]
        episodes = rng.integers(len(frames), size=count)
        starts = rng.integers(frames.shape[1] - length + 1, size=count)
        mean, std = self.scales[self.spaces[world]]
        rows = np.stack([actions[e, s : s + length - 1] for e, s in zip(episodes, starts)])
        return np.stack([frames[e, s : s + length] for e, s in zip(episodes, starts)]), (rows - mean) / std

    def beginnings(self, world: int) -> tuple[np.ndarray, np.ndarray]:
        """The first clip of every episode, as :meth:`clips`."""
        length = self.recipe["frames"]
        mean, std = self.scales[self.spaces[world]]
        return np.array(self.frames[world][:, :length]), (self.actions[world][:, : length - 1] - mean) / std

    def draw(self, step: int, micro: int, count: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The clips of a step: (world, frames, actions)."""
        rng = np.random.default_rng([self.recipe["seed"], step, micro])
        world = int(rng.choice(len(self.names), p=self.shares))
        return world, *self.clips(world, rng, count)
