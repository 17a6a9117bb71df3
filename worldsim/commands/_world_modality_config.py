"""What the recipes of the world-modality experiment say: one arm, or all arms with several seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from worldsim.commands import _latents
from worldsim.commands._policy_windows import Wish
from worldsim.core.config import config
from worldsim.core.types import ActionSpec
from worldsim.data.policy_windows import PolicyWindowSpec, Scaling
from worldsim.policies._world_modality_arms import ARMS, arm
from worldsim.policies._world_modality_net import matched
from worldsim.policies._world_modality_sizes import NetSpec
from worldsim.policies._world_modality_training import LossSpec
from worldsim.tokenizers.kmeans import KMeans
from worldsim.train.settings import Training


@config
class Shared:
    """What every arm has in common.

    Attributes:
        data: dataset folder, any format. format: its registered format; detected when null.
        camera: the codebook's when null; ``a+b`` stacks two.
        tokenizer: run of ``tokenize-world --tokenizer kmeans``; its codebook is fitted on training episodes alone.
        context_frames, horizon, future: C frames seen, H actions of a chunk, K frames whose tokens are predicted.
        data_fraction: share of the training episodes that is trained on (0.1, 0.25, 0.5, 1); the same ones for every arm, a
            smaller share is a part of a larger one. Scaling stays that of all training episodes, so errors compare.
        d_model, layers, heads, ffn, dropout, pre_norm: of the transformer; its feed-forward layers are ``ffn * d_model`` wide.
        lambda_world: weight of the world loss. label_smoothing: of its cross-entropy.
        change_point_weight: weight of future tokens that differ from the current one.
        tie_head: the world head shares the world embedding's weights, in arms that have one.
        world_dropout: share of training windows without world input.
        block_act_to_world: actions may not look at WORLD_CUR directly.
        epochs: passes over the windows; decides ``train.steps`` and ``train.checkpoint_every`` (one epoch). Null: those two
            count, and an "epoch" is ``train.checkpoint_every`` steps.
        keep_epochs: newest files ``logs/model_<arm>_epoch<e>.pt`` that are kept; 0 keeps all.
        train: see ``train.settings.Training``; ``train.log_every`` is how often a line is said.
        encode_batch: frames per forward pass of the encoder, where columns lack any.
        columns: where columns go when the dataset is read-only; the dataset itself when null.
        max_rejected: how many bad episodes are accepted before the command fails.
    """

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("max_rejected", "encode_batch", "keep_epochs")

    data: str | None = None
    format: str | None = None
    camera: str | None = None
    tokenizer: str | None = None
    context_frames: int = 3
    horizon: int = 8
    future: int = 8
    data_fraction: float = 1.0
    d_model: int = 512
    layers: int = 6
    heads: int = 8
    ffn: int = 4
    dropout: float = 0.1
    pre_norm: bool = True
    lambda_world: float = 0.2
    label_smoothing: float = 0.0
    change_point_weight: float = 1.0
    tie_head: bool = False
    world_dropout: float = 0.0
    block_act_to_world: bool = False
    epochs: int | None = 50
    keep_epochs: int = 0
    train: Training = Training()
    encode_batch: int = 64
    columns: str | None = None
    max_rejected: int = 0

    def __post_init__(self) -> None:
        for key in ("context_frames", "horizon", "future", "d_model", "layers", "heads", "ffn", "encode_batch"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {self.epochs}; null takes train.steps")
        for key in ("lambda_world", "change_point_weight", "keep_epochs"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, but is {getattr(self, key)}")
        for key in ("dropout", "label_smoothing", "world_dropout"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key} must lie in [0, 1), but is {getattr(self, key)}")
        if not 0 < self.data_fraction <= 1:
            raise ValueError(f"data_fraction must lie in (0, 1], but is {self.data_fraction}")
        if self.d_model % self.heads:
            raise ValueError(f"d_model = {self.d_model} must be a multiple of heads = {self.heads}")
        if self.train.sharding != "none":
            raise ValueError("train.sharding: these policies fit any device whole; it must be none")

    @property
    def window(self) -> PolicyWindowSpec:
        return PolicyWindowSpec(self.context_frames, self.horizon, self.future)

    @property
    def loss(self) -> LossSpec:
        return LossSpec(self.lambda_world, self.label_smoothing, self.change_point_weight)

    def wish(self) -> Wish:
        data, root = _latents.folders(self.data, self.columns)
        return Wish(Path(data), root, self.camera, self.encode_batch, self.max_rejected)

    def net(self, arm: str, scaling: Scaling | None, action_spec: ActionSpec, states: int, tokenizer: KMeans) -> NetSpec:
        """The sizes of one arm on one dataset."""
        spec = NetSpec(
            arm=arm,
            context=self.context_frames,
            horizon=self.horizon,
            future=self.future,
            state_dim=states if scaling is None else scaling.state_dim,
            action_dim=action_spec.dim,
            image_dim=tokenizer.dim,
            positions=tokenizer.frame_tokens,
            codes=tokenizer.codes,
            d_model=self.d_model,
            layers=self.layers,
            heads=self.heads,
            inner=self.ffn * self.d_model,
            dropout=self.dropout,
            pre_norm=self.pre_norm,
            tie_head=self.tie_head,
            world_dropout=self.world_dropout,
            block_act_to_world=self.block_act_to_world,
        )
        return matched(spec)

    def settings(self, windows: int, world_size: int) -> tuple[Training, int]:
        """How it is optimised on so many windows, and steps per epoch."""
        if self.epochs is None:
            return self.train, self.train.checkpoint_every
        steps = -(-windows // (self.train.batch * self.train.accumulate * world_size))
        return replace(self.train, steps=self.epochs * steps, checkpoint_every=steps), steps


@config
class OneArm(Shared):
    """One arm; ``arm`` is A, B, C, C_no_input, C_hist, C_pred, C_oracle or A_plus (``policies._world_modality_arms``)."""

    trains: Literal["world-modality"] = "world-modality"
    arm: str = "C"

    def __post_init__(self) -> None:
        super().__post_init__()
        arm(self.arm)


@config
class AllArms(Shared):
    """Every arm with every seed, then the comparison.

    Attributes:
        arms: which. seeds: how many each; the run's own ``--seed`` is the first, then the next ones.
        compare: whether the comparison (``eval offline``) is made at the end.
    """

    trains: Literal["world-modality-all"] = "world-modality-all"
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: int = 3
    compare: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1 or not self.arms:
            raise ValueError("seeds must be at least 1, and arms must name one")
        for name in self.arms:
            arm(name)
        if len(set(self.arms)) < len(self.arms):
            raise ValueError("arms: one is named twice")
