"""``worldsim finetune-wan``: LoRA fine-tuning of a Wan video model on actions that are aligned per latent frame.

Two phases. ``encode``: frozen encoders fill columns (latents of every clip, prompts), shared among processes, then leave
memory. ``train``: the transformer learns from the columns; no encoder is loaded. Killed anywhere, the same command ends in
the same checkpoint.
"""

from __future__ import annotations

import gc
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from worldsim.commands import _latents
from worldsim.commands._finetune_clips import Choice, Wish, check_size_text, choose
from worldsim.commands._finetune_encode import Encoded, encode
from worldsim.commands._finetune_samples import require_samples, write_samples
from worldsim.core.config import config, to_values
from worldsim.core.errors import UserError
from worldsim.core.protocols import EpisodeSource
from worldsim.core.runs import RunContext
from worldsim.core.types import Result
from worldsim.data.transforms import Kind
from worldsim.encoders.wan_vae import PACK, latent_count
from worldsim.formats import open_dataset
from worldsim.nn.flow import TimeSampling
from worldsim.train import checkpoint
from worldsim.train.loop import Outcome, fit
from worldsim.train.order import Order
from worldsim.train.settings import Training
from worldsim.train.tracking import METRICS, read_rows
from worldsim.world_models._wan_card import Sampling, WanCard
from worldsim.world_models._wan_conditioning import check_route
from worldsim.world_models._wan_geometries import Base, resolve
from worldsim.world_models._wan_memory import Estimate, estimate
from worldsim.world_models._wan_net import NetSpec, WanNet
from worldsim.world_models._wan_routes import find
from worldsim.world_models._wan_training import FlowLoss
from worldsim.world_models.wan import TEXT


@config
class Lora:
    """``rank`` 0 trains every weight of the transformer. The update is scaled by ``alpha / rank``; null is ``rank``."""

    rank: int = 32
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank must not be negative, but is {self.rank}")


@config
class Flow:
    """How training times are drawn and weighed: ``worldsim.nn.flow.TimeSampling``; ``shift`` null is the model's own.
    ``weight``: ``bump`` is the reference's Gaussian bump."""

    times: Literal["uniform", "logit-normal", "grid"] = "logit-normal"
    shift: float | None = None
    weight: Literal["even", "bump"] = "even"


@config
class Cache:
    """The encode phase: source frames from one clip's start to the next (null: a quarter of a clip), and clips per
    forward pass of an encoder. ``export``: ``worldeval`` also writes ``train/*.tensors.pth``, WorldEval's own samples, for
    its image-to-video bases."""

    hop: int | None = None
    batch: int = 1
    export: Literal["worldeval"] | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.hop is not None and self.hop < 1):
            raise ValueError("hop and batch must be at least 1")


@config
class Imagined:
    """How rollouts of this checkpoint are sampled by default. ``guidance`` 1.0 is off; ``shift`` null is the model's own."""

    steps: int = 30
    guidance: float = 1.0
    shift: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, but is {self.steps}")


@config
class Config:
    """What to fine-tune, on what, and how.

    Attributes:
        data: dataset folder, any format. format: its registered format; detected when null.
        camera: the first by name when null; ``a+b`` (on the command line also ``a,b``) stacks several from top to bottom.
        fps: frame rate of the clips; must divide the dataset's; that of the dataset when null.
        frames: frames per clip, 4k + 1.
        min_frames: episodes too short for that give clips of as many frames as they hold, 4k + 1, if not fewer than these;
            null leaves them out. A batch holds clips of one length.
        size: ``HxW`` of the whole picture; the camera's own when null, within what the model was trained on.
        model: a Wan by name, or a folder in diffusers' layout. revision: of its weights; what is there when null.
        actions: ``raw``, or a column that extract-latents made, as ``plugin`` or ``plugin@fingerprint``.
        action_delay: rows between a command and its visible effect.
        action_dropout: share of clips whose actions are hidden, so that action guidance exists.
        action_sums: the conditioner also sees the actions' running sums since the last given frame; for actions that are
            differences or velocities, whose sum is where things are by then.
        normalise: ``mean-std``, or ``quantile`` (1 % … 99 % onto -1 … 1).
        route: how actions enter the transformer.
        hidden: width of the conditioner; the route's own when null (that of the transformer).
        history: given latents of later chunks in a long rollout (1 + 4 (history - 1) frames); the first has one.
        history_noise: given latents get Gaussian noise of a deviation up to this (latents are about unit size), so that
            long rollouts forgive their own errors; 0 is off.
        lora, flow, cache, train, sampling: see their classes.
        columns: where columns go when the dataset is read-only; the dataset itself when null.
        max_rejected: how many bad train episodes are accepted before the command fails.
    """

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("max_rejected", "train.sharding")

    data: str | None = None
    format: str | None = None
    camera: str | None = None
    fps: float | None = None
    frames: int = 49
    min_frames: int | None = None
    size: str | None = None
    model: str = "wan2.2-ti2v-5b"
    revision: str | None = None
    actions: str = "raw"
    action_delay: int = 0
    action_dropout: float = 0.1
    action_sums: bool = False
    normalise: Kind = "mean-std"
    route: str = "patch-add"
    hidden: int | None = None
    history: int = 2
    history_noise: float = 0.0
    lora: Lora = Lora()
    flow: Flow = Flow()
    cache: Cache = Cache()
    train: Training = Training()
    sampling: Imagined = Imagined()
    columns: str | None = None
    max_rejected: int = 0

    def __post_init__(self) -> None:
        latent_count(self.frames)
        least = self.min_frames
        if least is not None and not (5 <= least <= self.frames and least % PACK == 1):
            raise ValueError(f"min_frames must be 4k + 1 between 5 and frames = {self.frames}, but is {least}")
        if not 0 <= self.history_noise < float("inf"):
            raise ValueError(f"history_noise must not be negative, but is {self.history_noise}")
        if self.action_delay < 0:
            raise ValueError(f"action_delay must be at least 0, but is {self.action_delay}")
        check_size_text(self.size)
        check_route(self.route)
        if not 0 <= self.action_dropout < 1:
            raise ValueError(f"action_dropout must lie in [0, 1), but is {self.action_dropout}")
        if self.action_sums and not find(self.route).aligned:
            raise ValueError(f"action_sums: the route {self.route} pools a clip's actions and knows no order to sum in")


def run(config: Config, context: RunContext) -> Result:
    """Encode, then train. See the module's docstring."""
    wish, base = _wish(config), resolve(config.model, config.revision)
    share = {"rank": context.rank, "world_size": context.world_size}
    context.reads("data", wish.data)
    if config.cache.export is not None:
        require_samples(base)
    source = open_dataset(wish.data, config.format)
    try:
        choice = choose(wish, source, base)
        for note in choice.notes:
            context.note(note)
        encoded = encode(wish, source, choice, base, context.device, **share)
        for note in choice.left_out:
            context.note(note)
        if config.cache.export is not None:
            context.note(write_samples(wish.root, encoded, choice, source, **share))
    finally:
        source.close()
    gc.collect()
    if context.device == "cuda":
        torch.cuda.empty_cache()
    outcome, net = _train_phase(config, context, encoded, _card(config, choice, encoded, base), base)
    return _report(config, context, choice, encoded, outcome, net)


def _wish(config: Config) -> Wish:
    data, root = _latents.folders(config.data, config.columns)
    return Wish(
        data=data,
        root=root,
        camera=config.camera,
        fps=config.fps,
        frames=config.frames,
        min_frames=config.min_frames,
        size=config.size,
        actions=config.actions,
        action_delay=config.action_delay,
        history=config.history,
        hop=config.cache.hop,
        batch=config.cache.batch,
        normalise=config.normalise,
        max_rejected=config.max_rejected,
    )


def _card(config: Config, choice: Choice, encoded: Encoded, base: Base) -> WanCard:
    shift = config.sampling.shift or base.geometry.shift
    return WanCard(
        base=base.to_json(),
        net=_net_spec(config, base, encoded.normalize.dim, choice.plan.window.stride),
        height=choice.plan.height,
        width=choice.plan.width,
        fps=choice.fps,
        frames=max(bucket.spec.frames for bucket in encoded.clips.clips),
        histories=choice.plan.histories,
        camera=choice.plan.camera,
        action_column=encoded.action_column,
        action_spec=encoded.latents.spec,
        action_delay=config.action_delay,
        normalize=encoded.normalize,
        sampling=Sampling(config.sampling.steps, config.sampling.guidance, shift),
        prompts=dict(sorted(encoded.prompts.items())) if encoded.texts_travel else {},
        teacher_forced=_latents.teacher_forced(encoded.latents.column),
        train_episodes=tuple(encoded.clips.episodes),
        action_dropout=config.action_dropout,
    )


def _net_spec(config: Config, base: Base, action_dim: int, stride: int) -> NetSpec:
    return NetSpec(
        action_dim=action_dim,
        rows_per_frame=stride,
        route=config.route,
        hidden=config.hidden or find(config.route).hidden(base.geometry, action_dim),
        rank=config.lora.rank,
        alpha=config.lora.alpha if config.lora.alpha is not None else float(config.lora.rank),
        sums=config.action_sums,
    )


def _train_phase(
    config: Config, context: RunContext, encoded: Encoded, card: WanCard, base: Base
) -> tuple[Outcome, WanNet]:
    """The loop over clips from columns; writes ``checkpoint/`` and ``state/``."""
    dtype = torch.bfloat16 if context.device == "cuda" and config.lora.rank else torch.float32
    net = WanNet(base.transformer(dtype), base.geometry, card.net, seed=context.seed)
    if config.train.gradient_checkpointing:
        net.transformer.enable_gradient_checkpointing()
    shift = config.flow.shift or base.geometry.shift
    times = TimeSampling(config.flow.times, shift)
    bump = config.flow.weight == "bump"
    module = FlowLoss(net, card.histories, times, bump, config.action_dropout, config.history_noise)
    order = Order(
        encoded.clips.counts,
        context.seed,
        config.train.batch,
        config.train.accumulate,
        context.rank,
        context.world_size,
    )

    def fetch(step: int, micro: int) -> dict[str, Tensor]:
        batch = {k: torch.from_numpy(v) for k, v in encoded.clips.batch(order.indices(step, micro)).items()}
        return {k: v.pin_memory() for k, v in batch.items()} if context.device == "cuda" else batch

    travelling = encoded.texts if encoded.texts_travel else {}
    texts = {f"{TEXT}{key}": torch.from_numpy(array) for key, array in travelling.items()}

    def save(tensors: dict[str, Tensor], step: int) -> None:
        checkpoint.write_checkpoint(context.out / "checkpoint", tensors | texts, card.to_json(), step)

    return fit(module, fetch, config.train, context, save, to_values(config)), net


def _report(config: Config, context: RunContext, choice: Choice, encoded: Encoded, outcome: Outcome, net: WanNet) -> Result:
    rows = read_rows(context.out / METRICS)
    done = outcome.steps - outcome.resumed_at
    seen = done * config.train.batch * config.train.accumulate * context.world_size
    metrics: dict[str, Any] = {
        "steps": outcome.steps,
        "loss": rows[-1]["loss"] if rows else None,
        "clips": len(encoded.clips),
        "episodes": len(encoded.clips.episodes),
        "rejected": [{"episode": bad.episode, "reason": bad.reason} for bad in choice.rejected],
        "trained_parameters": sum(p.numel() for p in net.trained().values()),
        "clips_per_second": round(seen / outcome.seconds, 4) if done else None,
        "data_share": round(outcome.waited / outcome.seconds, 4) if done else None,
    }
    if context.device == "cuda":
        metrics["peak_gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    where = ["--set", f"columns={config.columns}"] if config.columns and config.actions != "raw" else []
    plan, lengths = choice.plan, sorted({bucket.spec.frames for bucket in encoded.clips.clips})
    frames = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else f"{lengths[0]}"
    return Result(
        metrics=metrics,
        next=["worldsim", "infer", config.data, "--model", context.out, *where],
        summary=f"{outcome.steps} steps on {len(encoded.clips)} clips of {frames} frames {plan.height}x{plan.width} "
        f"at {choice.fps:g} fps from {len(encoded.clips.episodes)} episodes; loss {metrics['loss']:.4f}",
    )


def plan(config: Config, seed: int = 0, processes: int = 1) -> dict[str, Any]:
    """What would be trained on, how large the columns get, and an estimate of memory. Decodes and encodes nothing.

    Args:
        processes: that would train together; what each of them needs depends on it with ``train.sharding``.
    """
    wish, base = _wish(config), resolve(config.model, config.revision)
    source = open_dataset(wish.data, config.format)
    try:
        choice = choose(wish, source, base)
        dim = _action_dim(wish, source, choice.plan.dataset)
    finally:
        source.close()
    window, geometry = choice.plan.window, base.geometry
    grid = (choice.plan.height // geometry.stride) * (choice.plan.width // geometry.stride)
    latents = latent_count(max(choice.clips))
    spec = _net_spec(config, base, dim, window.stride)
    needed = estimate(
        geometry,
        spec,
        latents * grid // 4,
        config.train.batch,
        config.train.gradient_checkpointing,
        processes=processes,
        sharded=config.train.sharding == "fsdp2",
    )
    copies = 1 + (len(choice.plan.histories) if geometry.family == "i2v" else 0)
    stored = sum(latent_count(frames) * clips for frames, clips in choice.clips.items())
    return {
        "episodes": len(choice.episodes),
        "clips": sum(choice.clips.values()),
        "clips_of_frames": {str(frames): clips for frames, clips in choice.clips.items()},
        "camera": choice.plan.camera,
        "size": f"{choice.plan.height}x{choice.plan.width}",
        "fps": choice.fps,
        "rows_per_frame": window.stride,
        "action_width": dim,
        "columns_gib": round(stored * copies * geometry.channels * grid * 2 / 2**30, 3),
        "base_revision": base.revision,
        "notes": [*choice.left_out, *choice.notes],
        "processes": processes,
        **_memory(needed),
    }


def _action_dim(wish: Wish, source: EpisodeSource, digest: str) -> int:
    if wish.actions == "raw":
        if source.card.actions is None:
            raise UserError(f"the dataset {wish.data} has no actions", "worldsim doctor DATA")
        return source.card.actions.dim
    return _latents.find(wish.root, wish.data, wish.actions, digest).spec.dim


def _memory(needed: Estimate) -> dict[str, Any]:
    return {
        "parameters": needed.parameters,
        "trained_parameters": needed.trained,
        "tokens_per_clip": needed.tokens,
        "weights_gib": round(needed.weights / 2**30, 2),
        "optimizer_gib": round(needed.optimizer / 2**30, 2),
        "activations_gib": round(needed.activations / 2**30, 2),
        "gpu_memory_gib": round(needed.total / 2**30, 1),
        "loading_main_memory_gib": round(needed.host / 2**30, 1),
    }
