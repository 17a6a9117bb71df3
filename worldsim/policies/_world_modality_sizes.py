"""Sizes of a world-modality network, and where the parts of its sequence lie."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from worldsim.core.errors import UserError
from worldsim.policies._world_modality_arms import arm


@dataclass(frozen=True)
class NetSpec:
    """Sizes of a network.

    Attributes:
        arm: see ``_world_modality_arms``. context, horizon, future: C, H, K. state_dim: S, may be 0. action_dim: A.
        image_dim: d of an embedding. positions: P of a frame. codes: N of the codebook.
        d_model, layers, heads: of the encoder. inner: width of its feed-forward layers.
        tie_head: the world head shares the weights of the world embedding, where the arm has one.
        world_dropout: share of training windows whose world input is replaced by a learned "absent" vector.
        block_act_to_world: actions may not look at WORLD_CUR; the token then helps the prediction alone.
    """

    arm: str
    context: int
    horizon: int
    future: int
    state_dim: int
    action_dim: int
    image_dim: int
    positions: int
    codes: int
    d_model: int = 512
    layers: int = 6
    heads: int = 8
    inner: int = 2048
    dropout: float = 0.1
    pre_norm: bool = True
    tie_head: bool = False
    world_dropout: float = 0.0
    block_act_to_world: bool = False

    def __post_init__(self) -> None:
        if self.d_model % self.heads:
            raise UserError(f"d_model = {self.d_model} must be a multiple of heads = {self.heads}")
        if self.tie_head and not arm(self.arm).history:
            object.__setattr__(self, "tie_head", False)  # there is no embedding to share

    def card(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Segments:
    """Where the parts of a sequence lie; empty slices for parts that an arm does not have."""

    obs: slice
    world: slice
    future: slice
    act: slice

    @classmethod
    def of(cls, spec: NetSpec) -> Segments:
        what = arm(spec.arm)
        frames = spec.context if what.history < 0 else what.history
        lengths = (1, frames, spec.future if what.predicts else 0)
        at, parts = 0, []
        for length in [*(count * spec.positions for count in lengths), spec.horizon]:
            parts.append(slice(at, at + length))
            at += length
        return cls(*parts)

    @property
    def total(self) -> int:
        return self.act.stop


def length(part: slice) -> int:
    return part.stop - part.start
