"""How anything trainable is optimised: one config for every recipe, and what follows from it at each step."""

from __future__ import annotations

import math
from typing import Literal

from worldsim.core.config import config
from worldsim.core.errors import UserError


@config
class Training:
    """The keys under ``train`` of a recipe.

    Attributes:
        steps: optimiser steps in all.
        batch: clips per process and forward pass.
        accumulate: forward passes per optimiser step.
        lr: peak learning rate.
        conditioner_lr: that of layers trained from nothing; None is four times ``lr``.
        warmup: steps of linear rise.
        schedule: constant, or a cosine down to a tenth.
        betas, weight_decay: AdamW's.
        clip: bound on the gradient norm; 0 is none.
        ema: decay of the averaged weights that a checkpoint holds; 0 keeps the last weights.
        checkpoint_every: steps between saves of ``checkpoint/`` and ``state/``; one is always made at the end.
        log_every: steps between rows of ``metrics.jsonl``.
        gradient_checkpointing: recompute activations instead of keeping them.
        sharding: ``fsdp2`` cuts weights, gradients and moments over the processes, for models that fit no device whole;
            ``none`` gives each process the whole model. The results are those of ``none`` up to rounding.
        wandb: None logs to Weights & Biases when it is configured; true or false decides.
        project: its project there.
    """

    steps: int = 2000
    batch: int = 1
    accumulate: int = 1
    lr: float = 1e-4
    conditioner_lr: float | None = None
    warmup: int = 100
    schedule: Literal["constant", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    checkpoint_every: int = 500
    log_every: int = 10
    gradient_checkpointing: bool = True
    sharding: Literal["none", "fsdp2"] = "none"
    wandb: bool | None = None
    project: str = "worldsim"

    def __post_init__(self) -> None:
        for key in ("steps", "batch", "accumulate", "checkpoint_every", "log_every"):
            if getattr(self, key) < 1:
                raise UserError(f"train.{key} = {getattr(self, key)} must be at least 1")
        for key in ("lr", "warmup", "weight_decay", "clip"):
            if getattr(self, key) < 0:
                raise UserError(f"train.{key} = {getattr(self, key)} must not be negative")
        if not 0 <= self.ema < 1:
            raise UserError(f"train.ema = {self.ema} must lie in [0, 1)")


FLOOR = 0.1
"""A cosine schedule ends at this fraction of the peak."""


def lr_factor(step: int, settings: Training) -> float:
    """Learning rate at ``step`` (from 0) as a fraction of the peak: a function of the step alone, so nothing to resume."""
    rise = min(1.0, (step + 1) / (settings.warmup + 1))
    if settings.schedule == "constant":
        return rise
    after = max(0, step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return rise * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, after))))


def ema_decay(step: int, settings: Training) -> float:
    """Decay at ``step``: small at first, so that the average forgets the start.

    # source: the warm-up ``(1 + n) / (10 + n)`` of TensorFlow's ExponentialMovingAverage
    """
    return min(settings.ema, (1 + step) / (10 + step))
