"""``train --config fsq_frame | fsq_compressive``: a tokenizer, on frames of any dataset and nothing else.

The train episodes' frames alone are looked at. Frames of the wanted size are kept in memory when all of them fit into
``cache_gib``; otherwise they are read from the dataset as they are needed. At the end the checkpoint is measured on held-out
episodes: what it reconstructs is the floor of every model that speaks its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from worldsim.commands import _latents
from worldsim.commands._selection import parse_size
from worldsim.commands._tokenizer_frames import Chosen, Wish, choose
from worldsim.core import registry
from worldsim.core.config import config, to_values
from worldsim.core.errors import BadEpisode, UserError, again
from worldsim.core.runs import CHECKPOINT, RunContext
from worldsim.core.types import Result
from worldsim.data.segments import SegmentSpec
from worldsim.formats import open_dataset
from worldsim.nn.perceptual import perceptual
from worldsim.tokenizers import load
from worldsim.tokenizers._training import MOVED, Loss, TokenizerLoss, tokenizer_weights
from worldsim.train import checkpoint
from worldsim.train.loop import Outcome, fit
from worldsim.train.order import Order, noise_seed
from worldsim.train.settings import Training

Distance = Callable[[Tensor, Tensor], Tensor]
HELD_OUT_CLIPS = 64
"""So many held-out segments are measured at the end, spread over the episodes."""


class Config:
    """Stands for the configs of all tokenizers: the key ``tokenizer`` decides what ``net`` may hold."""

    @staticmethod
    def pick(values: Mapping[str, Any]) -> Any:
        return config_of(str(values.get("tokenizer") or "fsq-compressive").replace("_", "-"))


@config
class Common:
    """What to train, on what, and how. The nets' own keys stand under ``net``: the tokenizer's ``Net``.

    Attributes:
        trains: ``tokenizer``. tokenizer: which one, by its registered name.
        data: dataset folder, any format. format: its registered format; detected when null.
        camera: the first by name when null; ``a+b`` stacks several.
        fps: frame rate that a frame's distance from its context is counted in; that of the dataset when null.
        size: ``HxW``; frames are cut and resized to it; the camera's own when null.
        targets: frames per segment beside the context frame; a batch holds ``train.batch`` segments.
        horizon: frames after the context frame that targets are drawn from.
        cache_gib: frames are kept in memory when they take no more than this, in each process.
        loss, train: see their classes.
        max_rejected: how many bad train episodes are accepted before the command fails.
    """

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("max_rejected", "cache_gib")

    trains: Literal["tokenizer"] = "tokenizer"
    tokenizer: str = "fsq-compressive"
    data: str | None = None
    format: str | None = None
    camera: str | None = None
    fps: float | None = None
    size: str | None = None
    targets: int = 7
    horizon: int = 32
    cache_gib: float = 4.0
    loss: Loss = Loss()
    train: Training = Training()
    max_rejected: int = 0

    def __post_init__(self) -> None:
        parse_size(self.size)
        SegmentSpec(self.targets, self.horizon)
        if self.train.sharding != "none":
            raise ValueError(f"train.sharding must be none: a tokenizer fits every device whole, not {self.train.sharding}")
        if self.train.conditioner_lr is not None:
            raise ValueError("train.conditioner_lr means nothing to a tokenizer; its critic has loss.gan_lr")


@cache
def config_of(tokenizer: str) -> Any:
    """The config of one tokenizer: :class:`Common` and its own ``net``."""
    spec = registry.get("tokenizers", tokenizer).Net
    return config(type("Config", (Common,), {"__annotations__": {"net": spec}, "net": spec(), "__module__": __name__}))


def run(config: Any, context: RunContext) -> Result:
    """Read or look up frames, train, and measure the floor. See the module's docstring."""
    data, _ = _latents.folders(config.data, None)
    context.reads("data", data)
    source = open_dataset(data, config.format)
    try:
        chosen = choose(wish_of(config), source)
        for note in chosen.notes:
            context.note(note)
        distance, named = distance_of(config.loss, context.device)
        if config.loss.perceptual:
            context.note(f"the perceptual distance is {named}")
        outcome = _fit(config, context, chosen, distance)
        floor = held_out(context, chosen) if context.rank == 0 else {}
    finally:
        source.close()
    return _report(config, context, chosen, outcome, floor)


def wish_of(config: Any) -> Wish:
    """The part of the config that chooses frames."""
    return Wish(
        data=Path(config.data),
        camera=config.camera,
        fps=config.fps,
        size=parse_size(config.size),
        targets=config.targets,
        horizon=config.horizon,
        cache_gib=config.cache_gib,
        max_rejected=config.max_rejected,
        check=lambda height, width: sketch(config, height, width),
    )


def sketch(config: Any, height: int, width: int) -> Any:
    """The tokenizer, on no device.

    Raises:
        UserError: the frames do not divide into its cells.
    """
    plugin = registry.get("tokenizers", config.tokenizer)
    try:
        with torch.device("meta"):
            return plugin(config.net, height, width)
    except ValueError as error:
        raise UserError(f"size = {height}x{width}: {error}", again(size="256x320")) from None


def distance_of(weights: Loss, device: str) -> tuple[Distance, str]:
    """The perceptual distance that the recipe asks for, and what it is called.

    Raises:
        UserError: ``lpips`` was asked for and its weights are not there.
    """
    if weights.distance != "pyramid":
        lpips = registry.get("encoders", "vgg")
        missing = lpips.unavailable()
        if missing is None:
            return lpips.create(device), "LPIPS on VGG16"
        if weights.distance == "lpips":
            raise UserError(missing, again({"loss.distance": "pyramid"}))
    return perceptual, "the built-in pyramid of fixed filters (no LPIPS weights are needed for it)"


def _fit(config: Any, context: RunContext, chosen: Chosen, distance: Distance) -> Outcome:
    """The loop over segments; writes ``checkpoint/`` and ``state/``."""
    torch.manual_seed(context.seed)
    net = registry.get("tokenizers", config.tokenizer)(config.net, chosen.height, chosen.width)
    about = {"camera": chosen.camera, "fps": chosen.fps, "train_episodes": sorted(chosen.train.lengths)}
    net.about = about
    net.recompute(config.train.gradient_checkpointing)
    module = TokenizerLoss(net, config.loss, distance)
    settings = config.train
    order = Order(len(chosen.train), context.seed, settings.batch, settings.accumulate, context.rank, context.world_size)

    def fetch(step: int, micro: int) -> dict[str, Tensor]:
        numbers = order.indices(step, micro).tolist()
        seeds = [noise_seed(context.seed, step, micro, context.rank, at) for at in range(len(numbers))]
        frames = np.stack([chosen.train.frames(number, seed) for number, seed in zip(numbers, seeds)])
        return {"frames": torch.from_numpy(frames), "step": torch.tensor(step)}

    def save(tensors: dict[str, Tensor], step: int) -> None:
        checkpoint.write_checkpoint(context.out / CHECKPOINT, tokenizer_weights(tensors), net.card(), step)

    return fit(module, fetch, settings, context, save, to_values(config))


@torch.no_grad()
def held_out(context: RunContext, chosen: Chosen) -> dict[str, float]:
    """What the run's checkpoint reconstructs of held-out segments (of train ones where nothing is held out).

    ``mse``, ``psnr``, ``perceptual`` of the target frames; ``motion_mse`` over pixels that moved since the context frame, and
    ``copy_motion_mse`` of the context frame itself there; ``codes_used``: share of all codes; ``perplexity`` of the codes.
    """
    segments = chosen.held_out if len(chosen.held_out) else chosen.train
    net = load(context.out, context.device)
    numbers = np.unique(np.linspace(0, len(segments) - 1, HELD_OUT_CLIPS).astype(int))
    sums = dict.fromkeys(("mse", "perceptual", "moved", "motion", "copy", "frames"), 0.0)
    counts = torch.zeros(net.codes)
    for number in numbers.tolist():
        try:
            clip = torch.from_numpy(segments.frames(number, number))
        except BadEpisode as bad:
            context.note(f"held-out episode {bad.episode} was left out: {bad.reason}")
            continue
        first, targets = clip[:1], clip[1:][None]
        tokens = net.encode(targets, first)
        made = net.pixels(net.open(net.encode_context(first)), tokens)[0]
        truth, still = (x.to(made.device).movedim(-1, 1).float() / 255 for x in (targets[0], first))
        moved = ((truth - still).abs().amax(1, keepdim=True) > MOVED).float()
        sums["mse"] += float((made - truth).square().mean((1, 2, 3)).sum())
        sums["perceptual"] += float(perceptual(made, truth).sum())
        sums["moved"] += float(moved.sum())
        sums["motion"] += float(((made - truth).square().mean(1, keepdim=True) * moved).sum())
        sums["copy"] += float(((still - truth).square().mean(1, keepdim=True) * moved).sum())
        sums["frames"] += len(truth)
        counts += torch.bincount(tokens.flatten().cpu(), minlength=net.codes)
    if not sums["frames"]:
        return {}
    share = counts / counts.sum()
    mse, moved_pixels = sums["mse"] / sums["frames"], max(sums["moved"], 1.0)
    return {
        "mse": mse,
        "psnr": 10 * math.log10(1 / max(mse, 1e-12)),
        "perceptual": sums["perceptual"] / sums["frames"],
        "motion_mse": sums["motion"] / moved_pixels,
        "copy_motion_mse": sums["copy"] / moved_pixels,
        "codes_used": float((counts > 0).float().mean()),
        "perplexity": float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum())),
    }


def _report(config: Any, context: RunContext, chosen: Chosen, outcome: Outcome, floor: dict[str, float]) -> Result:
    done = outcome.steps - outcome.resumed_at
    seen = done * config.train.batch * config.train.accumulate * context.world_size * (1 + config.targets)
    metrics: dict[str, Any] = {
        "steps": outcome.steps,
        "loss": outcome.loss if done else None,
        "episodes": len(chosen.train.lengths),
        "segments": len(chosen.train),
        "rejected": [{"episode": bad.episode, "reason": bad.reason} for bad in chosen.rejected],
        "held_out": {key: round(value, 6) for key, value in floor.items()},
        "frames_per_second": round(seen / outcome.seconds, 2) if done else None,
        "data_share": round(outcome.waited / outcome.seconds, 4) if done else None,
    }
    said = f"; held out: {floor['psnr']:.2f} dB, {floor['perplexity']:.0f} codes in use" if floor else ""
    return Result(
        metrics=metrics,
        next=["worldsim", "tokenize-world", config.data, "--tokenizer", config.tokenizer, "--checkpoint", context.out],
        summary=f"{config.tokenizer}: {outcome.steps} steps on {len(chosen.train.lengths)} episodes at "
        f"{chosen.height}x{chosen.width}{said}",
    )


def plan(config: Any, seed: int = 0, processes: int = 1) -> dict[str, Any]:
    """What would be trained on, and how large it is. Decodes nothing."""
    data, _ = _latents.folders(config.data, None)
    source = open_dataset(data, config.format)
    try:
        chosen = choose(wish_of(config), source, decode=False)
    finally:
        source.close()
    net = sketch(config, chosen.height, chosen.width)
    parameters = sum(p.numel() for p in net.parameters())
    return {
        "episodes": len(chosen.train.lengths),
        "segments": len(chosen.train),
        "camera": chosen.camera,
        "size": f"{chosen.height}x{chosen.width}",
        "codes": net.codes,
        "tokens_per_frame": net.frame_tokens,
        "context_tokens": net.context_tokens,
        "parameters": parameters,
        "weights_and_optimizer_gib": round(parameters * 5 * 4 / 2**30, 2),
        "notes": chosen.notes,
        "processes": processes,
    }
