"""``train --config token_single_step | token_multi_step``: a transformer over the tokens of frames and actions.

Phases: ``encode`` fills the columns of tokens that are missing (``tokenize-world`` does the same beforehand); ``train`` reads
nothing else. Action ranges come from training episodes alone and travel in the checkpoint, with a copy of the tokenizer.
"""

from __future__ import annotations

import gc
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from worldsim import tokenizers
from worldsim.commands import _latents, _tokens
from worldsim.commands._token_windows import TokenWindows, Wish, cut_for, prepare
from worldsim.core.config import config, to_values
from worldsim.core.errors import UserError, again
from worldsim.core.files import read_json, replacing
from worldsim.core.runs import RunContext
from worldsim.core.types import Result
from worldsim.data import columns
from worldsim.data.split import split_episodes
from worldsim.data.token_actions import TokenActions
from worldsim.formats import open_dataset
from worldsim.train import checkpoint
from worldsim.train.loop import Outcome, fit
from worldsim.train.order import Order, noise_seed
from worldsim.train.settings import Training
from worldsim.train.tracking import METRICS, read_rows
from worldsim.world_models._token_card import Sampling, TokenCard
from worldsim.world_models._token_layout import Layout
from worldsim.world_models._token_net import NetSpec, TokenNet
from worldsim.world_models._token_training import TokenLoss
from worldsim.world_models.token_ar import TOKENIZER


@config
class Net:
    """Sizes of the transformer."""

    layers: int = 12
    width: int = 768
    ffn: int = 3072
    heads: int = 12


@config
class Actions:
    """How action numbers become ids: ``bins`` equal steps over the training episodes' ``minmax``, or over their 1 % to 99 %
    ``quantile`` range (outliers then share the outermost bins). ``ranges``: a JSON file of ``low`` and ``high`` per number (and
    ``bins``, ``kind``) instead, such as those that released weights were trained with."""

    bins: int = 256
    range: Literal["minmax", "quantile"] = "quantile"
    ranges: str | None = None


@config
class Draw:
    """How rollouts of this checkpoint are drawn by default; ``top_k`` null takes every code."""

    temperature: float = 1.0
    top_k: int | None = None


@config
class Config:
    """What to train, on what, and how.

    Attributes:
        trains: ``token-model``.
        data: dataset folder, any format. format: its registered format; detected when null.
        camera: the first by name when null. fps: frame rate; must divide the dataset's; that of the dataset when null.
        tokenizer: run folder of the tokenizer whose codes are learnt.
        layout: ``clean``, or ``released``: RLVR-World's own sequences, for its weights.
        history: frames given, with the actions between them. predicted: frames predicted at once.
        context_back: the context frame of a compressive tokenizer lies up to so many frames before the first given one.
        short_history: share of windows whose history is cut to a random shorter one, filled up with its first frame and
            action, so that an episode's beginning can be imagined; 0 is off.
        actions: see its class. action_delay: rows between a command and its effect.
        legal: learn probabilities over the legal codes alone; false is the whole vocabulary, as released.
        encode_batch: frames per forward pass of the tokenizer.
        init: begin from these weights, a token model's run or a folder of transformers' ``LlamaForCausalLM``; null is random.
        net, train, sampling: see their classes.
        columns: where columns go when the dataset is read-only; the dataset itself when null.
        max_rejected: how many bad train episodes are accepted before the command fails.
    """

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("max_rejected", "train.sharding", "encode_batch")

    trains: Literal["token-model"] = "token-model"
    data: str | None = None
    format: str | None = None
    camera: str | None = None
    fps: float | None = None
    tokenizer: str | None = None
    layout: Literal["clean", "released"] = "clean"
    history: int = 4
    predicted: int = 1
    context_back: int = 0
    short_history: float = 0.0
    actions: Actions = Actions()
    action_delay: int = 0
    legal: bool = True
    encode_batch: int = 16
    init: str | None = None
    net: Net = Net()
    train: Training = Training()
    sampling: Draw = Draw()
    columns: str | None = None
    max_rejected: int = 0

    def __post_init__(self) -> None:
        for key, least in (("history", 1), ("predicted", 1), ("context_back", 0), ("encode_batch", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key} must be at least {least}, not {getattr(self, key)}")
        if not 0 <= self.short_history < 1:
            raise ValueError(f"short_history must lie in [0, 1), but is {self.short_history}")
        if self.layout == "released" and self.short_history:
            raise ValueError("short_history: the released layout has no shorter histories; it must be 0")


def run(config: Config, context: RunContext) -> Result:
    """Encode, then train. See the module's docstring."""
    folder = _tokenizer(config)
    wish = _wish(config)
    context.reads("data", wish.data)
    for name, text in (("tokenizer", config.tokenizer), ("init", config.init), ("ranges", config.actions.ranges)):
        if text is not None:
            context.reads(name, Path(text))
    source = open_dataset(wish.data, config.format)
    try:
        tokenizer = tokenizers.load(folder, context.device)
        windows = prepare(wish, source, tokenizer, context.device, rank=context.rank, world_size=context.world_size)
        for episode, reason in windows.rejected.items():
            context.note(f"episode {episode} was left out: {reason}")
        bins = _bins(config, windows)
        card = _card(config, windows, bins, tokenizer)
    finally:
        source.close()
    del tokenizer
    gc.collect()
    if context.device == "cuda":
        torch.cuda.empty_cache()
    outcome, parameters = _train_phase(config, context, windows, bins, card, folder)
    return _report(config, context, windows, outcome, parameters)


def _tokenizer(config: Config) -> Path:
    if config.tokenizer is None:
        raise UserError("no tokenizer was named", "worldsim train --config token_multi_step DATA --tokenizer RUN")
    if not Path(config.tokenizer).exists():
        raise UserError(
            f"there is no tokenizer run {config.tokenizer}",
            ["worldsim", "train", "--config", "fsq_compressive", config.data or "DATA"],
        )
    folder = tokenizers.find(Path(config.tokenizer))
    tokenizers.require_decoder(folder)
    return folder


def _wish(config: Config) -> Wish:
    data, root = _latents.folders(config.data, config.columns)
    return Wish(
        data=data,
        root=root,
        camera=config.camera,
        fps=config.fps,
        history=config.history,
        predicted=config.predicted,
        back=config.context_back,
        delay=config.action_delay,
        batch=config.encode_batch,
        max_rejected=config.max_rejected,
    )


def _bins(config: Config, windows: TokenWindows) -> TokenActions:
    """Ranges of the training episodes' actions, or those that were given."""
    wanted = config.actions
    if wanted.ranges is None:
        return TokenActions.fit(np.concatenate(list(windows.actions.values())), wanted.bins, wanted.range)
    bins = TokenActions.load(Path(wanted.ranges))
    if (bins.width, bins.bins) != (windows.action_spec.dim, wanted.bins):
        raise UserError(
            f"{wanted.ranges} has {bins.bins} bins of {bins.width} numbers; here are {wanted.bins} of {windows.action_spec.dim}"
        )
    return bins


def layout_of(config: Config, tokenizer: Any, action_tokens: int) -> Layout:
    """
    Raises:
        UserError: the released layout was asked for with other numbers than the released ones.
    """
    clean = Layout.clean(
        tokenizer.codes,
        tokenizer.frame_tokens,
        tokenizer.context_tokens,
        config.history,
        config.predicted,
        action_tokens,
        config.actions.bins,
    )
    if config.layout == "clean":
        return clean
    released = Layout.released_multi() if tokenizer.context_tokens else Layout.released_single()
    for key, value in released.card().items():
        if key != "kind" and getattr(clean, key) != value:
            raise UserError(
                f"the released layout has {key} = {value}, not {getattr(clean, key)}",
                "worldsim train --config token_single_step --set layout=clean",
            )
    return released


def _card(config: Config, windows: TokenWindows, bins: TokenActions, tokenizer: Any) -> TokenCard:
    stride = windows.cut.stride
    layout = layout_of(config, tokenizer, stride * windows.action_spec.dim)
    return TokenCard(
        layout=layout,
        net=NetSpec(layout.vocab, **asdict(config.net)),
        tokenizer={"name": tokenizer.card()["tokenizer"], "digest": _tokens.digest_of(tokenizer)},
        height=tokenizer.height,
        width=tokenizer.width,
        fps=windows.fps,
        camera=windows.cut.camera,
        context_back=config.context_back if layout.context_tokens else 0,
        action_spec=windows.action_spec,
        action_delay=config.action_delay,
        rows_per_frame=stride,
        bins=bins.card(),
        sampling=Sampling(config.sampling.temperature, config.sampling.top_k),
        legal=config.legal,
        short_history=config.short_history > 0,
        train_episodes=tuple(windows.episodes),
    )


def _train_phase(
    config: Config, context: RunContext, windows: TokenWindows, bins: TokenActions, card: TokenCard, folder: Path
) -> tuple[Outcome, int]:
    """The loop over windows from columns; writes ``checkpoint/`` and ``state/``."""
    torch.manual_seed(context.seed)
    net = _net(config, card)
    module = TokenLoss(net, card.layout, card.legal)
    settings = config.train
    share = (settings.batch, settings.accumulate, context.rank, context.world_size)
    order = Order(len(windows), context.seed, *share)

    def fetch(step: int, micro: int) -> dict[str, Tensor]:
        rng = np.random.default_rng(noise_seed(context.seed, step, micro, context.rank))
        ids = sequences(windows, order.indices(step, micro), rng, bins, card.layout, config.short_history)
        return {"ids": ids.pin_memory() if context.device == "cuda" else ids}

    def save(tensors: dict[str, Tensor], step: int) -> None:
        write_tokenizer(tokenizers.load(folder), context.out / "checkpoint")
        checkpoint.write_checkpoint(context.out / "checkpoint", tensors, card.to_json(), step)

    outcome = fit(module, fetch, settings, context, save, to_values(config))
    return outcome, sum(p.numel() for p in net.parameters())


def _net(config: Config, card: TokenCard) -> TokenNet:
    """Random weights, or those of ``init``.

    Raises:
        UserError: there are none, or they are of another size; names the key.
    """
    if config.init is None:
        return TokenNet(card.net)
    folder = Path(config.init)
    folder = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    if (folder / "config.json").exists():
        found = NetSpec.from_llama(read_json(folder / "config.json"))
    else:
        found = TokenCard.read(folder / checkpoint.CARD).net
    if found != card.net:
        raise UserError(
            f"{config.init} has {found}, this recipe {card.net}",
            again({f"net.{key}": value for key, value in found.card().items() if key != "vocab"}),
        )
    tensors = checkpoint.read_weights(folder / checkpoint.WEIGHTS)
    return TokenNet.from_llama({name: tensor.float() for name, tensor in tensors.items()}, card.net)


def sequences(
    windows: TokenWindows,
    indices: np.ndarray,
    rng: np.random.Generator,
    bins: TokenActions,
    layout: Layout,
    short_history: float,
) -> Tensor:
    """Whole sequences, int64 ``[B, total]``, of the windows at ``indices``."""
    batch = windows.batch(indices, rng)
    frames, actions = batch["frames"], encode_rows(bins, batch["actions"])
    for row in np.nonzero(rng.random(len(frames)) < short_history)[0] if layout.history > 1 else []:
        lacking = layout.history - int(rng.integers(1, layout.history))
        frames[row, :lacking], actions[row, :lacking] = frames[row, lacking], actions[row, lacking]
    return layout.sequence(*(torch.from_numpy(part) for part in (batch["context"], frames, actions)))


def encode_rows(bins: TokenActions, rows: np.ndarray) -> np.ndarray:
    """Physical rows ``[..., r, A]`` as bins, int64 ``[..., r * A]``, row by row."""
    return bins.encode(rows.reshape(-1, rows.shape[-1])).reshape(*rows.shape[:-2], rows.shape[-2] * rows.shape[-1])


def write_tokenizer(tokenizer: Any, target: Path) -> None:
    """The tokenizer into a checkpoint, once: the checkpoint then needs nothing else."""
    if not (target / TOKENIZER / checkpoint.CARD).exists():
        with replacing(target / TOKENIZER) as temporary:
            tokenizer.save(temporary)


def _report(config: Config, context: RunContext, windows: TokenWindows, outcome: Outcome, parameters: int) -> Result:
    rows = read_rows(context.out / METRICS)
    done = outcome.steps - outcome.resumed_at
    seen = done * config.train.batch * config.train.accumulate * context.world_size
    metrics: dict[str, Any] = {
        "steps": outcome.steps,
        "loss": rows[-1]["loss"] if rows else None,
        "windows": len(windows),
        "episodes": len(windows.episodes),
        "rejected": [{"episode": episode, "reason": reason} for episode, reason in windows.rejected.items()],
        "parameters": parameters,
        "windows_per_second": round(seen / outcome.seconds, 3) if done else None,
        "data_share": round(outcome.waited / outcome.seconds, 4) if done else None,
    }
    if context.device == "cuda":
        metrics["peak_gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return Result(
        metrics=metrics,
        next=["worldsim", "rlvr", config.data, "--model", context.out],
        summary=f"{outcome.steps} steps on {len(windows)} windows of {config.history} + {config.predicted} frames at "
        f"{windows.fps:g} fps from {len(windows.episodes)} episodes; loss {metrics['loss']:.4f} nats per token",
    )


def plan(config: Config, seed: int = 0, processes: int = 1) -> dict[str, Any]:
    """What would be trained on and what is still to be tokenised; decodes and encodes nothing."""
    wish, folder = _wish(config), _tokenizer(config)
    tokenizer = tokenizers.load(folder, "cpu")
    source = open_dataset(wish.data, config.format)
    try:
        cut = cut_for(wish, source, tokenizer)
        if source.card.actions is None:
            raise UserError(f"the dataset {wish.data} has no actions", "worldsim doctor DATA")
        layout = layout_of(config, tokenizer, cut.stride * source.card.actions.dim)
        train = split_episodes(source.ids(), source.card.splits).train
        found = _tokens.specs(tokenizer, columns.dataset_fingerprint(wish.data), cut)
        todo = _tokens.missing(wish.root, found, train)
    finally:
        source.close()
    spec = NetSpec(layout.vocab, **asdict(config.net))
    with torch.device("meta"):
        parameters = sum(p.numel() for p in TokenNet(spec).parameters())
    return {
        "episodes": len(train),
        "to_tokenise": len(todo),
        "camera": cut.camera,
        "sequence": f"{layout.prompt_length} + {layout.response_length} tokens of {layout.vocab} ids",
        "parameters": parameters,
        "gpu_memory_gib": round((20 * parameters + _activations(spec, layout, config.train.batch)) / 2**30, 1),
    }


def _activations(spec: NetSpec, layout: Layout, batch: int) -> int:
    """Bytes of activations that a backward pass keeps, roughly: bf16 values per token and layer, and fp32 logits."""
    length = layout.prompt_length + layout.response_length
    per_layer = 2 * (12 * spec.width + 3 * spec.ffn)
    return batch * (length * spec.layers * per_layer + 3 * 4 * layout.response_length * layout.codes)
