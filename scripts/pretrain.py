"""Make the bundled base model `worldsim-tiny`: simulate, fit the codec, train the transformer, put it into the package.

    python scripts/pretrain.py                                # everything, into runs/pretrain; continues where it stopped
    python scripts/pretrain.py --stage bundle                 # only write the package's copy from the last checkpoint

What it sees and how it is trained stands in ``scripts/pretrain.yaml``. Each stage is skipped when its files are there. The
action conditioners of the training (one per space of actions) are dropped: what stays is a video model that knows how
these scenes move and has learned to read *some* vector per latent; a fine-tune brings its own conditioner.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from simulate import _policy
from torch import Tensor, nn

from worldsim import envs
from worldsim.core.console import say, track
from worldsim.core.files import replacing
from worldsim.core.runs import RunContext
from worldsim.encoders import seeded
from worldsim.encoders.patch_vae import PatchVAE
from worldsim.encoders.wan_vae import PACK, WanVAE, to_unit
from worldsim.nn.action_embedder import ActionEmbedder
from worldsim.nn.flow import TimeSampling
from worldsim.rollout import SimulatedSource
from worldsim.train import checkpoint
from worldsim.train.loop import fit
from worldsim.train.order import noise_seed
from worldsim.train.settings import Training
from worldsim.train.tracking import METRICS, read_rows
from worldsim.world_models._wan_geometries import BUNDLED, GEOMETRIES, Geometry
from worldsim.world_models._wan_net import NetSpec, WanNet
from worldsim.world_models._wan_training import FlowLoss

RECIPE = Path(__file__).with_name("pretrain.yaml")
FILES = ("frames.npy", "actions.npy")


def simulate_worlds(recipe: dict[str, Any], out: Path, only: list[str] | None = None) -> None:
    """One folder per world: ``frames.npy`` uint8 ``[E, T, H, W, 3]`` and ``actions.npy`` float32 ``[E, T - 1, A]``."""
    for name, world in recipe["worlds"].items():
        if (only is None or name in only) and not all((out / name / file).exists() for file in FILES):
            with replacing(out / name) as folder:
                folder.mkdir(parents=True)
                _simulate(name, world, recipe, folder)


def _simulate(name: str, world: dict[str, Any], recipe: dict[str, Any], folder: Path) -> None:
    simulator = envs.make(world["env"], **world["options"])
    actors = {text: _policy(text, simulator) for text in world["policies"]}
    count, steps = world["episodes"], recipe["steps_per_episode"]
    first = 1_000_000 + 100_000 * list(recipe["worlds"]).index(name)  # far from the demo's seeds: it is held out
    source = SimulatedSource(simulator, actors, range(first, first + count), steps, name=name)
    shape = (count, steps + 1, recipe["size"], recipe["size"], 3)
    frames = np.lib.format.open_memmap(folder / FILES[0], "w+", np.uint8, shape)
    actions = []
    for index in track(range(count), f"simulate {name}", unit="episodes"):
        episode = source.episode(index)
        (stream,) = episode.frames.values()
        frames[index] = np.concatenate(list(stream))
        actions.append(episode.actions)
    frames.flush()
    np.save(folder / FILES[1], np.stack(actions).astype(np.float32))
    simulator.close()


class Worlds:
    """Clips of every world, drawn by (seed, step): a batch is of one world, and so of one space of actions."""

    def __init__(self, recipe: dict[str, Any], folder: Path) -> None:
        self.recipe, self.names = recipe, list(recipe["worlds"])
        self.spaces = [recipe["worlds"][name]["space"] for name in self.names]
        shares = np.array([recipe["worlds"][name]["share"] for name in self.names])
        self.shares = shares / shares.sum()
        self.frames = [np.load(folder / name / FILES[0], mmap_mode="r") for name in self.names]
        self.actions = [np.load(folder / name / FILES[1]) for name in self.names]
        self.scales = {space: self._scale(space) for space in set(self.spaces)}

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

    def draw(self, step: int, micro: int, count: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The clips of a step: (world, frames, actions)."""
        rng = np.random.default_rng([self.recipe["seed"], step, micro])
        world = int(rng.choice(len(self.names), p=self.shares))
        return world, *self.clips(world, rng, count)


def fit_codec(recipe: dict[str, Any], worlds: Worlds, folder: Path) -> WanVAE:
    """The linear VAE of the worlds' patches, saved in diffusers' layout."""
    settings = recipe["codec"]
    if not (folder / "config.json").exists():
        vae = PatchVAE(z_dim=settings["z_dim"], patch=settings["patch"], scale_factor_spatial=settings["patch"])

        def videos() -> Iterator[Tensor]:
            for step in track(range(settings["windows"] // 16), "fit codec", unit="batches"):
                _, frames, _ = worlds.draw(step, 99, 16)
                yield torch.from_numpy(to_unit(frames))

        vae.fit(videos())
        with replacing(folder) as temporary:
            vae.save_pretrained(temporary)
    return WanVAE(PatchVAE.from_pretrained(folder))


class Pretraining(nn.Module):
    """The transformer, whole, with a conditioner per space of actions. What is hidden is exactly no vector at all, so
    that a base without a conditioner is the model of unknown actions."""

    def __init__(self, recipe: dict[str, Any], geometry: Geometry, dims: dict[str, int]) -> None:
        super().__init__()
        self.geometry = geometry
        from diffusers import WanTransformer3DModel

        transformer = seeded(lambda: WanTransformer3DModel(**geometry.transformer), recipe["seed"])
        nn.init.zeros_(transformer.proj_out.weight)  # begins as the repeated given frame
        nn.init.zeros_(transformer.proj_out.bias)
        spec = NetSpec(action_dim=1, rows_per_frame=1, route="patch-add", hidden=geometry.width, rank=0, alpha=1.0)
        self.net = WanNet(transformer, geometry, spec, recipe["seed"])
        self.spaces = seeded(lambda: nn.ModuleDict({s: self._conditioner(d) for s, d in sorted(dims.items())}))
        self.flow = FlowLoss(
            self.net, tuple(recipe["histories"]), TimeSampling("logit-normal", geometry.shift), False, recipe["dropout"]
        )

    def _conditioner(self, dim: int) -> ActionEmbedder:
        conditioner = ActionEmbedder(PACK, dim, self.geometry.width, self.geometry.width)
        conditioner.given.requires_grad_(False)
        conditioner.null.requires_grad_(False)
        return conditioner

    def use(self, space: str) -> None:
        self.net.conditioner = self.spaces[space]

    def forward(self, latents: Tensor, actions: Tensor, text: Tensor, space: Tensor) -> Tensor:
        self.use(list(self.spaces)[int(space)])
        return self.flow(latents, actions, text)

    def trained(self) -> dict[str, nn.Parameter]:
        out = {f"transformer.{k}": p for k, p in self.net.transformer.named_parameters()}
        return out | {f"spaces.{k}": p for k, p in self.spaces.named_parameters() if p.requires_grad}

    def groups(self, settings: Training) -> list[dict[str, Any]]:
        return [{"params": list(self.trained().values()), "lr": settings.lr}]


def train(recipe: dict[str, Any], worlds: Worlds, vae: WanVAE, out: Path, seed: int) -> None:
    """Into ``out``: ``checkpoint/`` with averaged weights, ``state/``, ``metrics.jsonl``."""
    settings = Training(**recipe["train"])
    module = Pretraining(recipe, GEOMETRIES[recipe["name"]], worlds.dims())
    order = list(module.spaces)
    text = torch.zeros(settings.batch, 1, module.geometry.transformer["text_dim"])

    def fetch(step: int, micro: int) -> dict[str, Tensor]:
        world, frames, actions = worlds.draw(step, micro, settings.batch)
        return {
            "latents": torch.from_numpy(vae.encode(frames)),
            "actions": torch.from_numpy(actions).float().unsqueeze(2),
            "text": text,
            "space": torch.tensor(order.index(worlds.spaces[world])),
        }

    def save(tensors: dict[str, Tensor], step: int) -> None:
        checkpoint.write_checkpoint(out / "checkpoint", tensors, {"recipe": recipe}, step)

    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fit(module, fetch, settings, RunContext("pretrain", out, device, seed), save, {"recipe": recipe})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--stage", choices=("all", "worlds", "codec", "train", "bundle"), default="all")
    parser.add_argument("--world", action="append", help="simulate these alone")
    given = parser.parse_args(argv)
    recipe = yaml.safe_load(given.recipe.read_text(encoding="utf8"))
    if given.stage in ("all", "worlds"):
        simulate_worlds(recipe, given.out / "worlds", given.world)
    if given.stage == "worlds":
        return 0
    worlds = Worlds(recipe, given.out / "worlds")
    vae = fit_codec(recipe, worlds, given.out / "codec")
    if given.stage in ("all", "train"):
        train(recipe, worlds, vae, given.out / "train", recipe["seed"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
