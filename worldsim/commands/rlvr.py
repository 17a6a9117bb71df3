"""``worldsim rlvr``: GRPO on a token world model, rewarded for what its decoded futures look like beside the truth.

Phases: ``encode`` fills the columns of tokens that are missing; ``train`` draws groups of futures, decodes and rewards them,
and learns. ``checkpoint/`` is the model as it is, ``best/`` as it was where held-out scenes were rewarded most; both are whole
token models for ``infer`` and ``eval video``. Killed anywhere, the same command ends in the same checkpoint.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from worldsim import rewards
from worldsim.commands import _latents, _tokens
from worldsim.commands._rlvr_config import Update, Validate
from worldsim.commands._rlvr_scenes import Scenes, draw_rollouts, only
from worldsim.commands._token_windows import TokenWindows, Wish, cut_for, prepare
from worldsim.commands._train_token_model import write_tokenizer
from worldsim.commands._world import load_world
from worldsim.core.config import config, to_values
from worldsim.core.errors import UserError
from worldsim.core.protocols import EpisodeSource, SupportsLogProb
from worldsim.core.runs import RunContext
from worldsim.core.types import Result
from worldsim.data import columns
from worldsim.data.split import Split, split_episodes
from worldsim.formats import open_dataset
from worldsim.rl.groups import Clock, Collector, Prompts
from worldsim.rl.loop import HELD_OUT, Improved, Plan, improve
from worldsim.rl.step import GroupLoss, Shares, Weights
from worldsim.train import checkpoint
from worldsim.train.settings import Training
from worldsim.train.tracking import METRICS, read_rows

HEAD = "lm_head.weight"
VALIDATION_SHARE = 10
"""Where the dataset has no val part of its own, every tenth training episode is looked at instead of learnt from."""
PICTURE = "rollouts.png"


@config
class Config:
    """What to improve, on what, for what, and how.

    Attributes:
        data: dataset folder, any format. format: its registered format; detected when null.
        camera: the model's own when null, where the dataset has it, else the first by name.
        model: run folder of a token world model; it is also the reference that the policy is held to.
        reward: rewards by name, added up: ``mae+lpips``, ``0.5*mse+repetition``; see ``worldsim models list``.
        group_size: n, futures per scene.
        iterations: rounds of drawing and learning. prompts: scenes per iteration. minibatch: scenes per update, a divisor
            of ``prompts``; the more updates, the further the policy is from the one that drew. epochs: how often each scene
            is learnt from. All are counted over all processes.
        kl: weight of the distance to the reference (k3). clip, dual_clip: bounds of the probability ratio.
        uniform_std: divide advantages by the mean deviation of all groups instead of each group's own.
        per_frame: credit a frame's tokens with it and what follows (reward to go), instead of with the mean of all frames.
        discount: with ``per_frame``, weight of each further frame against the one before it: below 1, the nearer counts more.
        per_cell: credit a token with the error of its own part of the picture alone, where the reward is a sum over pixels
            (mse, motion-mse, mae); other rewards count for all tokens of the frame. Much less noise: other cells are not its
            doing.
        temperature: of drawing and of learning. Below 1 the base's own best temperature can be where reinforcement begins, so
            that it learns more than to sharpen. sampling_temperature: of the checkpoint's rollouts; null is the same.
        compat: ``released`` samples and normalises over the whole vocabulary, and takes an illegal id for the last code.
        together: scenes in one call of the sampler.
        update, validate: see their classes.
        save_every: iterations between saves of ``checkpoint/`` and ``state/``; one is always made at the end.
        encode_batch: frames per forward pass of the tokenizer, where a column is missing.
        columns: where columns go when the dataset is read-only; the dataset itself when null.
        max_rejected: how many bad train episodes are accepted before the command fails.
        wandb, project: as in ``train``.
    """

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("max_rejected", "encode_batch")

    data: str | None = None
    format: str | None = None
    camera: str | None = None
    model: str | None = None
    reward: str = "mae+lpips"
    group_size: int = 16
    iterations: int = 200
    prompts: int = 128
    minibatch: int = 32
    epochs: int = 1
    kl: float = 1e-3
    clip: float = 0.2
    dual_clip: float = 3.0
    uniform_std: bool = False
    per_frame: bool = False
    discount: float = 1.0
    per_cell: bool = False
    temperature: float = 1.0
    sampling_temperature: float | None = None
    compat: Literal["released"] | None = None
    together: int = 8
    update: Update = Update()
    validate: Validate = Validate()
    save_every: int = 10
    encode_batch: int = 16
    columns: str | None = None
    max_rejected: int = 0
    wandb: bool | None = None
    project: str = "worldsim"

    def __post_init__(self) -> None:
        for key in ("iterations", "prompts", "minibatch", "epochs", "together", "save_every", "encode_batch"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")
        if self.group_size < 2:
            raise ValueError(f"group_size must be at least 2, not {self.group_size}: a future is judged beside the others")
        if not (0 < self.clip < 1 < self.dual_clip) or self.kl < 0:
            raise ValueError("clip must lie between 0 and 1, dual_clip above 1, and kl must not be negative")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount = {self.discount} must lie between 0 and 1")
        if self.per_cell and self.uniform_std:
            raise ValueError("per_cell and uniform_std are two ways to scale advantages; choose one")
        if not self.temperature > 0 or (self.sampling_temperature or 0) < 0:
            raise ValueError(f"temperature = {self.temperature} must be above 0, sampling_temperature 0 or more")
        if self.update.micro < 1 or self.validate.every < 0 or min(self.validate.scenes, self.validate.samples) < 1:
            raise ValueError(
                "update.micro, validate.scenes and validate.samples must be at least 1, validate.every at least 0"
            )
        rewards.parse(self.reward)


def run(config: Config, context: RunContext) -> Result:
    """Encode, then improve. See the module's docstring."""
    shares = _shares(config, context.world_size)
    judge = rewards.load(config.reward, context.device)
    policy = _model(config, context.device)
    wish = _wish(config, policy)
    context.reads("data", wish.data)
    context.reads("model", Path(str(config.model)))
    source = open_dataset(wish.data, config.format)
    try:
        wish = _placed(wish, config, policy, source)
        learnt, held = _parts(config, context, policy, wish, source)
        train, look = (Scenes(part, policy, context.seed) for part in (learnt, held))
        reference = frozen(policy)
        collector = Collector(
            policy,
            reference if config.kl else None,
            policy.tokenizer,
            judge,
            config.group_size,
            together=config.together,
            micro=config.update.micro,
            legal=config.compat is None,
            per_frame=config.per_frame,
            discount=config.discount,
            per_cell=config.per_cell,
            bf16=config.update.bf16,
            recompute=config.update.bf16 and shares.updates > 1,
            clock=Clock(context.device),
        )
        watched = [look.spread(max(config.validate.scenes, context.world_size), context.rank, context.world_size)]
        outcome = _improve(config, context, policy, collector, train, watched, shares, learnt, held)
        if context.rank == 0:
            draw_rollouts(context.out / PICTURE, collector, reference, look)
    finally:
        source.close()
    return _report(config, context, learnt, held, outcome)


def frozen(policy: Any) -> Any:
    """The policy as it is now, with weights of its own that never change."""
    twin = copy.copy(policy)
    twin.net = copy.deepcopy(policy.net).eval().requires_grad_(False)
    return twin


def _model(config: Config, device: str) -> Any:
    if config.model is None:
        raise UserError("no token world model was named", "worldsim rlvr DATA --model runs/train/token_multi_step")
    model = load_world(config.model, device)
    if not isinstance(model, SupportsLogProb):
        raise UserError(
            f"{config.model} cannot say how likely its futures are: only token world models can be reinforced",
            "worldsim train --config token_multi_step DATA",
        )
    net = model.net  # type: ignore[attr-defined]
    with torch.no_grad():
        net.lm_head.weight /= config.temperature  # every probability is then one at that temperature; undone when saved
    net.requires_grad_(True)
    return model


def _shares(config: Config, world_size: int) -> Shares:
    return Shares(config.prompts, config.minibatch, config.epochs, config.update.micro, world_size)


def _wish(config: Config, model: Any) -> Wish:
    data, root = _latents.folders(config.data, config.columns)
    card = model.card
    return Wish(
        data=data,
        root=root,
        camera=config.camera,
        fps=card.fps,
        history=card.layout.history,
        predicted=card.layout.predicted,
        back=card.context_back,
        delay=card.action_delay,
        batch=config.encode_batch,
        max_rejected=config.max_rejected,
        command="rlvr",
    )


def _placed(wish: Wish, config: Config, model: Any, source: EpisodeSource) -> Wish:
    """The wish with the camera that the model knows, where the dataset has it.

    Raises:
        UserError: the dataset's actions are not those that the model was trained on.
    """
    if source.card.actions is not None:
        model.card.action_spec.require(source.card.actions, mine=f"the model {config.model}", theirs=str(wish.data))
    own = model.card.camera if set(model.card.camera.split("+")) <= set(source.card.camera_names) else None
    return replace(wish, camera=config.camera or own)


def _parts(
    config: Config, context: RunContext, model: Any, wish: Wish, source: EpisodeSource
) -> tuple[TokenWindows, TokenWindows]:
    """Windows to learn from, and windows to look at; no test episode is among either."""
    split = split_episodes(source.ids(), source.card.splits)
    share = {"rank": context.rank, "world_size": context.world_size}
    found = prepare(wish, source, model.tokenizer, context.device, part="train", **share)
    for episode, reason in found.rejected.items():
        context.note(f"episode {episode} was left out: {reason}")
    if found.cut.stride != model.card.rows_per_frame:
        raise UserError(
            f"{wish.data} has {found.cut.stride} action rows per frame at {model.card.fps:g} fps, the model "
            f"{model.card.rows_per_frame}",
            "worldsim doctor DATA",
        )
    if own_validation(split):
        return found, prepare(wish, source, model.tokenizer, context.device, part="val", **share)
    looked = found.episodes[VALIDATION_SHARE - 1 :: VALIDATION_SHARE] or found.episodes[-1:]
    learnt = [name for name in found.episodes if name not in looked] or looked
    if learnt == looked:
        context.note("there is one train episode only: it is learnt from and looked at")
    return only(found, learnt), only(found, looked)


def own_validation(split: Split) -> bool:
    """Whether the dataset has a val part beside the one that scores are computed on."""
    return bool(split.parts.get("val")) and split.held_out != split.parts["val"]


def _improve(
    config: Config,
    context: RunContext,
    policy: Any,
    collector: Collector,
    train: Scenes,
    watched: list[Prompts],
    shares: Shares,
    learnt: TokenWindows,
    held: TokenWindows,
) -> Improved:
    settings = Training(
        steps=1,
        lr=config.update.lr,
        warmup=config.update.warmup,
        schedule=config.update.schedule,
        betas=config.update.betas,
        weight_decay=config.update.weight_decay,
        clip=config.update.clip_norm,
        ema=config.update.ema,
        wandb=config.wandb,
        project=config.project,
    )
    every = config.validate.every
    plan = Plan(config.iterations, shares, config.uniform_std, every, config.save_every, config.validate.samples)
    weights = Weights(config.kl, config.clip, config.dual_clip)
    loss = GroupLoss(policy, weights, config.compat is None, bf16=config.update.bf16)
    seen = tuple(sorted({*policy.card.train_episodes, *learnt.episodes, *held.episodes}))
    at = config.temperature if config.sampling_temperature is None else config.sampling_temperature
    card = replace(policy.card, train_episodes=seen).with_sampling(at, None).to_json()

    def save_to(name: str) -> Any:
        def save(tensors: dict[str, Tensor], step: int) -> None:
            write_tokenizer(policy.tokenizer, context.out / name)
            whole = {**tensors, HEAD: tensors[HEAD] * config.temperature}
            checkpoint.write_checkpoint(context.out / name, whole, card, step)

        return save

    return improve(
        collector,
        loss,
        lambda iteration: train.iteration(iteration, shares, context.rank),
        watched,
        plan,
        settings,
        context,
        save_to("checkpoint"),
        save_to("best"),
        to_values(config),
    )


def _report(config: Config, context: RunContext, learnt: TokenWindows, held: TokenWindows, outcome: Improved) -> Result:
    rows = read_rows(context.out / METRICS)
    looked = [row for row in rows if f"{HELD_OUT}reward" in row]
    done = outcome.iterations - outcome.resumed_at
    last = rows[-1] if rows else {}
    metrics: dict[str, Any] = {
        "iterations": outcome.iterations,
        "reward": last.get("reward"),
        "kl": last.get("kl"),
        "held_out_before": _numbers(looked[0]) if looked else None,
        "held_out_after": _numbers(looked[-1]) if looked else None,
        "best_iteration": outcome.best[0] if outcome.best else None,
        "windows": len(learnt),
        "episodes": len(learnt.episodes),
        "held_out_episodes": held.episodes,
        "rejected": [{"episode": episode, "reason": reason} for episode, reason in learnt.rejected.items()],
        "seconds_per_iteration": round(outcome.seconds / done, 3) if done else None,
        "sampled_tokens_per_second": round(last.get("sampled_tokens_per_second", 0.0), 1),
    }
    if context.device == "cuda":
        metrics["peak_gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    told = f"{outcome.iterations} iterations of {config.prompts} scenes x {config.group_size} on {len(learnt)} windows"
    if looked:
        before, after = looked[0][f"{HELD_OUT}reward"], looked[-1][f"{HELD_OUT}reward"]
        told += f"; held-out reward {before:.4f} -> {after:.4f}, best after iteration {metrics['best_iteration']} (best/)"
    return Result(
        metrics=metrics,
        next=["worldsim", "eval", "video", config.data, "--model", context.out, "--baseline", config.model],
        summary=told,
    )


def _numbers(row: dict[str, float]) -> dict[str, float]:
    """The held-out numbers of a row of ``metrics.jsonl``."""
    return {name.removeprefix(HELD_OUT): value for name, value in row.items() if name.startswith(HELD_OUT)}


def plan(config: Config, seed: int = 0, processes: int = 1) -> dict[str, Any]:
    """What would be drawn and learnt from, what is still to be tokenised, and an estimate of memory; decodes nothing."""
    shares, policy = _shares(config, processes), _model(config, "cpu")
    wish = _wish(config, policy)
    source = open_dataset(wish.data, config.format)
    try:
        wish = _placed(wish, config, policy, source)
        cut = cut_for(wish, source, policy.tokenizer)
        split = split_episodes(source.ids(), source.card.splits)
        found = _tokens.specs(policy.tokenizer, columns.dataset_fingerprint(wish.data), cut)
        todo = _tokens.missing(wish.root, found, split.train)
    finally:
        source.close()
    layout, spec = policy.layout, policy.net.spec
    parameters = sum(p.numel() for p in policy.net.parameters())
    return {
        "episodes": len(split.train),
        "to_tokenise": len(todo),
        "camera": cut.camera,
        "sequence": f"{layout.prompt_length} + {layout.response_length} tokens of {layout.vocab} ids",
        "futures_per_iteration": config.prompts * config.group_size,
        "updates": config.iterations * shares.updates,
        "parameters": parameters,
        "unavailable": [line for _, name in rewards.parse(config.reward) if (line := rewards.unavailable(name))],
        "gpu_memory_gib": round((24 * parameters + _working_bytes(config, layout, spec)) / 2**30, 1),
        "processes": processes,
    }


def _working_bytes(config: Config, layout: Any, spec: Any) -> int:
    """The larger of what sampling keeps (keys and values) and of what a backward pass keeps (activations, fp32 logits)."""
    per_token = 8 * spec.layers * spec.width
    cache = config.together * per_token * (layout.prompt_length + config.group_size * layout.response_length)
    tokens = layout.prompt_length + config.group_size * layout.response_length
    generated = config.group_size * layout.predicted * layout.frame_tokens
    passed = config.update.micro * (
        tokens * spec.layers * 4 * (12 * spec.width + 3 * spec.ffn) + 12 * generated * layout.codes
    )
    return max(cache, passed)
