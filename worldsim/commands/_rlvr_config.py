"""The keys ``update`` and ``validate`` of an ``rlvr`` recipe."""

from __future__ import annotations

from typing import Literal

from worldsim.core.config import config


@config
class Update:
    """How the policy is optimised. ``schedule``: constant, or a cosine down to a tenth of ``lr``. ``clip_norm`` bounds the
    gradient norm. ``ema``: decay of the averaged weights that ``checkpoint/`` holds, which takes the noise of few samples out;
    0 keeps the last. ``micro``: groups per forward pass, which changes memory and nothing else. ``bf16``: forward passes of
    policy and reference in bf16, softmax in fp32; with several updates per draw, what sampling recorded in fp32 is computed
    again in bf16 first."""

    lr: float = 5e-5
    warmup: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.0
    micro: int = 1
    bf16: bool = False


@config
class Validate:
    """``scenes`` held-out scenes are imagined ``samples`` times each every so many iterations, the first time before any
    learning. ``every`` 0 is never."""

    every: int = 10
    scenes: int = 32
    samples: int = 4
