"""Make the bundled base model `worldsim-tiny`: simulate, fit the codec, train the transformer, put it into the package.

    python scripts/pretrain.py                                # everything, into runs/pretrain; continues where it stopped
    python scripts/pretrain.py --stage score                  # only score the last checkpoint on unseen episodes
    python scripts/pretrain.py --stage bundle                 # only write the package's copy of it

What it sees and how it is trained stands in ``scripts/pretrain.yaml``. Each stage is skipped when its files are there. The
action conditioners of the training (one per space of actions) are dropped: what stays is a video model that knows how
these scenes move and has learned to read *some* vector per latent; a fine-tune brings its own conditioner.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import WanTransformer3DModel
from pretrain_worlds import HELD_OUT_SEED, Worlds, simulate_worlds
from torch import Tensor, nn

from worldsim.core.console import say, track
from worldsim.core.errors import UserError
from worldsim.core.files import remove, replacing, write_json, write_text
from worldsim.core.runs import RunContext
from worldsim.encoders import seeded
from worldsim.encoders.patch_vae import PatchVAE
from worldsim.encoders.wan_vae import PACK, WanVAE, to_unit
from worldsim.metrics.motion_psnr import motion_psnr
from worldsim.nn import flow
from worldsim.nn.action_embedder import ActionEmbedder
from worldsim.nn.flow import TimeSampling
from worldsim.train import checkpoint
from worldsim.train.loop import fit
from worldsim.train.settings import Training
from worldsim.train.tracking import METRICS, read_rows
from worldsim.world_models._wan_geometries import BUNDLED, GEOMETRIES, Geometry, cast
from worldsim.world_models._wan_net import NetSpec, WanNet
from worldsim.world_models._wan_training import FlowLoss

RECIPE = Path(__file__).with_name("pretrain.yaml")
SCORES = "scores.json"
HELD_OUT = 24
"""Episodes per world that are scored."""


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
    """The transformer, whole, with a conditioner per space of actions.

    Hidden actions are exactly no vector at all, so that the base without a conditioner is the model of unknown actions.
    """

    def __init__(self, recipe: dict[str, Any], geometry: Geometry, dims: dict[str, int]) -> None:
        super().__init__()
        self.geometry = geometry
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
        conditioner = ActionEmbedder(PACK, dim, self.geometry.width, self.geometry.width, sums=True)
        conditioner.given.requires_grad_(False)
        conditioner.null.requires_grad_(False)
        return conditioner

    @property
    def text_dim(self) -> int:
        return self.geometry.transformer["text_dim"]

    def use(self, space: str) -> None:
        self.net.conditioner = self.spaces[space]

    def forward(self, latents: Tensor, actions: Tensor, text: Tensor, space: Tensor) -> Tensor:
        self.use(list(self.spaces)[int(space)])
        return self.flow(latents, actions, text)

    def trained(self) -> dict[str, nn.Parameter]:
        out = {f"transformer.{k}": p for k, p in self.net.transformer.named_parameters()}
        return out | {f"spaces.{k}": p for k, p in self.spaces.named_parameters() if p.requires_grad}

    def groups(self, settings: Training) -> list[dict[str, Any]]:
        named = self.trained().items()
        slow = [p for name, p in named if not name.startswith("spaces.")]
        fast = [p for name, p in named if name.startswith("spaces.")]
        return [{"params": slow, "lr": settings.lr}, {"params": fast, "lr": settings.conditioner_lr}]


def train(recipe: dict[str, Any], worlds: Worlds, vae: WanVAE, out: Path, seed: int) -> None:
    """Into ``out``: ``checkpoint/`` with averaged weights, ``state/``, ``metrics.jsonl``."""
    settings = Training(**recipe["train"])
    module = Pretraining(recipe, GEOMETRIES[recipe["name"]], worlds.dims())
    order = list(module.spaces)
    text = torch.zeros(settings.batch, 1, module.text_dim)

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


def load_trained(recipe: dict[str, Any], worlds: Worlds, out: Path) -> Pretraining:
    """The averaged weights of the last checkpoint, conditioners included."""
    module = Pretraining(recipe, GEOMETRIES[recipe["name"]], worlds.dims())
    tensors = checkpoint.read_weights(out / "train" / "checkpoint" / checkpoint.WEIGHTS)
    mine = module.trained()
    if mine.keys() != tensors.keys():
        raise UserError(f"{out / 'train'} was trained by another recipe", f"rm -r {out / 'train'}")
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(tensors[name])
    return module.eval()


def score(recipe: dict[str, Any], worlds: Worlds, vae: WanVAE, out: Path) -> dict[str, Any]:
    """Motion PSNR (dB) of 16 imagined frames on episodes that were never trained on, per world and kind of clip."""
    simulate_worlds(recipe, out / "held-out", first_seed=HELD_OUT_SEED, most=HELD_OUT)
    held, module = Worlds(recipe, out / "held-out", worlds.scales), load_trained(recipe, worlds, out)
    rows = {}
    for number, name in enumerate(held.names):
        module.use(held.spaces[number])
        truth, own = held.beginnings(number)
        clips = {
            "own actions": imagine(module, vae, truth, own),
            "another episode's actions": imagine(module, vae, truth, np.roll(own, 1, axis=0)),
            "no actions": imagine(module, vae, truth, own, hidden=True),
            "given frame repeated": np.repeat(truth[:, :1], truth.shape[1], axis=1),
            "codec alone": vae.decode(vae.encode(truth)),
        }
        rows[name] = {kind: round(_mean_motion_psnr(clip, truth), 2) for kind, clip in clips.items()}
        say(f"{name}: {rows[name]}")
    return rows


@torch.no_grad()
def imagine(
    module: Pretraining, vae: WanVAE, truth: np.ndarray, actions: np.ndarray, hidden: bool = False, steps: int = 4
) -> np.ndarray:
    """uint8 like ``truth``, ``[B, F, H, W, 3]``, from its first frame."""
    count = len(truth)
    clean = torch.zeros_like(torch.from_numpy(vae.encode(truth)))
    clean[:, :, :1] = torch.from_numpy(vae.encode(truth[:, :1]))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    rows = torch.from_numpy(actions).float().unsqueeze(2)
    text, history = torch.zeros(count, 1, module.text_dim), torch.ones(count, dtype=torch.long)
    given = torch.zeros(1, 1, clean.shape[2], 1, 1, dtype=torch.bool)
    given[:, :, 0] = True

    def predict(x: Tensor, sigma: Tensor) -> Tensor:
        time = flow.timestep(sigma).expand(count)
        return module.net(torch.where(given, clean, x), time, text, rows, history, torch.full((count,), hidden))

    x = flow.euler(predict, noise, flow.schedule(steps, module.geometry.shift))
    return vae.decode(torch.where(given, clean, x))


def _mean_motion_psnr(clips: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([np.nanmean(motion_psnr(a[1:], b[1:], b[0])) for a, b in zip(clips, truth)]))


def bundle(recipe: dict[str, Any], worlds: Worlds, out: Path, folder: Path) -> None:
    """The package's copy: ``transformer/`` in bf16 and ``vae/`` in diffusers' layout, the recipe and the training's log.

    ``README.md``, the model card, is written by hand and kept.
    """
    module = load_trained(recipe, worlds, out)
    for part in ("transformer", "vae"):
        with replacing(folder / part) as temporary:
            remove(folder / part)
            if part == "vae":
                shutil.copytree(out / "codec" / part, temporary)
            else:
                cast(module.net.transformer, torch.bfloat16)
                module.net.transformer.save_pretrained(temporary)
    write_json(folder / "model_index.json", {"_class_name": "WanImageToVideoPipeline", "expand_timesteps": True})
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    shutil.copyfile(out / SCORES, folder / SCORES)
    rows = read_rows(out / "train" / METRICS)
    lines = [f"{row['step']},{row['loss']:.4f},{row['grad_norm']:.4f},{row['seconds']:.1f}" for row in rows]
    write_text(folder / "training.csv", "\n".join(["step,loss,grad_norm,seconds", *lines]) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    say(f"{folder}: {size / 2**20:.1f} MB of weights, step {rows[-1]['step']}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--stage", choices=("all", "worlds", "codec", "train", "score", "bundle"), default="all")
    parser.add_argument("--to", type=Path, default=BUNDLED / "worldsim-tiny", help="folder to bundle into")
    parser.add_argument("--world", action="append", help="simulate these alone")
    given = parser.parse_args(argv)
    recipe = yaml.safe_load(given.recipe.read_text(encoding="utf8"))
    if given.stage in ("all", "worlds"):
        simulate_worlds(recipe, given.out / "worlds", given.world)
    if given.stage == "worlds":
        return 0
    worlds = Worlds(recipe, given.out / "worlds")
    vae = fit_codec(recipe, worlds, given.out / "codec" / "vae")
    if given.stage in ("all", "train"):
        train(recipe, worlds, vae, given.out / "train", recipe["seed"])
    if given.stage in ("all", "score"):
        write_json(given.out / SCORES, score(recipe, worlds, vae, given.out))
    if given.stage in ("all", "bundle"):
        bundle(recipe, worlds, given.out, given.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
