"""A slow average of the trained weights: what a checkpoint holds, because it imagines better than the last weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worldsim.train.sharding import fill, local


class Ema:
    """fp32 copies of named parameters, moved a little towards them after each step; sharded as the parameters are."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.shadow = {name: p.detach().float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        names = list(self.shadow)
        shadow = [local(self.shadow[name]) for name in names]
        torch._foreach_lerp_(shadow, [local(parameters[name].detach()).float() for name in names], 1.0 - decay)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.shadow.items():
            fill(tensor, tensors[name])
