"""``train --config fsq_frame | fsq_compressive``: a tokenizer, on frames of any dataset and nothing else.

The train episodes' frames alone are looked at. Frames of the wanted size are kept in memory when all of them fit into
``cache_gib``; otherwise they are read from the dataset as they are needed. At the end the checkpoint is measured on held-out
episodes: what it reconstructs is the floor of every model that speaks its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from worldsim.commands import _latents
from worldsim.commands._selection import parse_size
from worldsim.core import registry
from worldsim.core.config import config, to_values
from worldsim.core.console import progress
from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.protocols import EpisodeSource
from worldsim.core.runs import CHECKPOINT, RunContext
from worldsim.core.types import Result
from worldsim.data import cameras
from worldsim.data.segments import Segments, SegmentSpec
from worldsim.data.split import split_episodes
from worldsim.data.transforms import Cover
from worldsim.data.windows import stride_for
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


@dataclass
class Chosen:
    """What is trained on: train and held-out segments, and what was decided for the user."""

    train: Segments
    held_out: Segments
    camera: str
    fps: float
    height: int
    width: int
    rejected: list[BadEpisode]
    notes: list[str]


def run(config: Any, context: RunContext) -> Result:
    """Read or look up frames, train, and measure the floor. See the module's docstring."""
    data, _ = _latents.folders(config.data, None)
    context.reads("data", data)
    source = open_dataset(data, config.format)
    try:
        chosen = choose(config, source)
        for note in chosen.notes:
            context.note(note)
        distance, named = distance_of(config.loss, context.device)
        if config.loss.perceptual:
            context.note(f"the perceptual distance is {named}")
        outcome = _fit(config, context, chosen, distance)
        floor = held_out(context.out, chosen, context.device) if context.rank == 0 else {}
    finally:
        source.close()
    return _report(config, context, chosen, outcome, floor)


def choose(config: Any, source: EpisodeSource) -> Chosen:
    """Decide camera, size and rate, and read what fits into memory.

    Raises:
        UserError: nothing fits; names the key and what would.
    """
    known = source.card.camera_names
    if not known:
        raise UserError(f"the dataset {config.data} has no camera", "worldsim doctor DATA")
    command = f"worldsim train --camera {min(known)}"
    names = cameras.require_cameras(config.camera or min(known), known, f"the dataset {source.card.name}", command)
    camera = cameras.stacked_info(cameras.JOIN.join(names), source.card.cameras)
    height, width = parse_size(config.size) or (camera.height, camera.width)
    _check_net(config, height, width)
    stride = stride_for(source.card.fps, config.fps)
    split = split_episodes(source.ids(), source.card.splits)
    frames = Frames(source, camera.name, Cover(height, width), config.cache_gib)
    spec = SegmentSpec(config.targets, config.horizon, stride)
    parts = [frames.survey(part) for part in (split.train, split.held_out)]
    rejected = frames.rejected
    frames.keep(parts[0])
    lost = len([bad for bad in rejected if bad.episode in set(split.train)])
    if lost > config.max_rejected or not parts[0]:
        first = rejected[0] if rejected else BadEpisode("-", "there is no train episode")
        raise UserError(
            f"{lost} of {len(split.train)} train episodes cannot be used, the first is {first.episode}: {first.reason}",
            f"worldsim train {config.data} … --set max_rejected={lost}" if parts[0] else f"worldsim doctor {config.data}",
        )
    kept = {name: count for name, count in parts[0].items() if name not in {bad.episode for bad in rejected}}
    notes = [f"episode {bad.episode} was left out: {bad.reason}" for bad in rejected]
    if len(known) > 1 and config.camera is None:
        notes.append(
            f"trained on camera '{camera.name}', the first by name; the others are {', '.join(sorted(set(known) - {camera.name}))}"
        )
    if not frames.kept:
        notes.append(
            f"the frames take {frames.gib(kept):.2f} GiB, more than cache_gib = {config.cache_gib:g}: read as needed"
        )
    return Chosen(
        Segments(kept, spec, frames.read),
        Segments(parts[1], spec, frames.read),
        camera.name,
        source.card.fps / stride,
        height,
        width,
        rejected,
        notes,
    )


def _check_net(config: Any, height: int, width: int) -> Any:
    """The tokenizer, on no device.

    Raises:
        UserError: the frames do not divide into its cells.
    """
    plugin = registry.get("tokenizers", config.tokenizer)
    try:
        with torch.device("meta"):
            return plugin(config.net, height, width)
    except ValueError as error:
        raise UserError(f"size = {height}x{width}: {error}", "worldsim train … --size 256x320") from None


class Frames:
    """Pixels of one camera at one size, from memory or from the dataset."""

    def __init__(self, source: EpisodeSource, camera: str, cover: Cover, cache_gib: float) -> None:
        self.source, self.camera, self.cover, self.cache_gib = source, camera, cover, cache_gib
        self.at = {name: index for index, name in enumerate(source.ids())}
        self.kept: dict[str, np.ndarray] = {}
        self.rejected: list[BadEpisode] = []

    def survey(self, episodes: list[str]) -> dict[str, int]:
        """Lengths, without decoding; the bad ones apart."""
        out: dict[str, int] = {}
        for name in episodes:
            try:
                out[name] = self._stream(name).num_frames
            except BadEpisode as bad:
                self.rejected.append(bad)
        return out

    def gib(self, lengths: Mapping[str, int]) -> float:
        return sum(lengths.values()) * self.cover.height * self.cover.width * 3 / 2**30

    def keep(self, lengths: Mapping[str, int]) -> None:
        """Decode all of them once, if they fit into memory."""
        if self.gib(lengths) > self.cache_gib:
            return
        with progress("read frames", len(lengths), unit="episodes") as bar:
            for name in lengths:
                try:
                    self.kept[name] = np.concatenate([self.cover.forward(block) for block in self._stream(name).blocks()])
                except BadEpisode as bad:
                    self.rejected.append(bad)
                bar.advance()

    def read(self, episode: str, rows: np.ndarray) -> np.ndarray:
        """uint8 ``[len(rows), height, width, 3]``."""
        if episode in self.kept:
            return self.kept[episode][rows]
        return self.cover.forward(self._stream(episode).rows(rows))

    def _stream(self, episode: str) -> Any:
        cover = self.cover
        return cameras.camera_stream(self.source.episode(self.at[episode]), self.camera, cover.height, cover.width)


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
            raise UserError(missing, "worldsim train … --set loss.distance=pyramid")
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
def held_out(out: Path, chosen: Chosen, device: str) -> dict[str, float]:
    """What the checkpoint in ``out`` reconstructs of held-out segments (of train ones where nothing is held out).

    ``mse``, ``psnr``, ``perceptual`` of the target frames; ``motion_mse`` over pixels that moved since the context frame, and
    ``copy_motion_mse`` of the context frame itself there; ``codes_used``: share of all codes; ``perplexity`` of the codes.
    """
    segments = chosen.held_out if len(chosen.held_out) else chosen.train
    net = load(out, device)
    numbers = np.unique(np.linspace(0, len(segments) - 1, HELD_OUT_CLIPS).astype(int))
    sums = dict.fromkeys(("mse", "perceptual", "moved", "motion", "copy", "frames"), 0.0)
    counts = torch.zeros(net.codes)
    for number in numbers.tolist():
        clip = torch.from_numpy(segments.frames(number, number))
        context, targets = clip[:1], clip[1:][None]
        tokens = net.encode(targets, context)
        made = net.pixels(net.open(net.encode_context(context)), tokens)[0]
        truth, still = (x.to(made.device).movedim(-1, 1).float() / 255 for x in (targets[0], context))
        moved = ((truth - still).abs().amax(1, keepdim=True) > MOVED).float()
        sums["mse"] += float((made - truth).square().mean((1, 2, 3)).sum())
        sums["perceptual"] += float(perceptual(made, truth).sum())
        sums["moved"] += float(moved.sum())
        sums["motion"] += float(((made - truth).square().mean(1, keepdim=True) * moved).sum())
        sums["copy"] += float(((still - truth).square().mean(1, keepdim=True) * moved).sum())
        sums["frames"] += len(truth)
        counts += torch.bincount(tokens.flatten().cpu(), minlength=net.codes)
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
        next=f"worldsim tokenize-world {config.data} --tokenizer {config.tokenizer} --checkpoint {context.out}",
        summary=f"{config.tokenizer}: {outcome.steps} steps on {len(chosen.train.lengths)} episodes at "
        f"{chosen.height}x{chosen.width}{said}",
    )


def plan(config: Any, seed: int = 0, processes: int = 1) -> dict[str, Any]:
    """What would be trained on, and how large it is. Decodes nothing."""
    data, _ = _latents.folders(config.data, None)
    source = open_dataset(data, config.format)
    try:
        chosen = choose(replace(config, cache_gib=0.0), source)
    finally:
        source.close()
    net = _check_net(config, chosen.height, chosen.width)
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
