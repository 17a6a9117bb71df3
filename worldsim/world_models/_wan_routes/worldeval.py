"""``worldeval``: the mean of a clip's action latents, through an MLP, is added to every text token.

Kept for parity with WorldEval's checkpoints: the pooling forgets order, so a clip played backwards gets the same video.
# source: Worldeval@4608426:diffsynth/models/wan_video_dit_act_embed.py, read for its formula and its key names
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from worldsim.encoders.wan_vae import PACK
from worldsim.world_models._wan_geometries import Geometry
from worldsim.world_models._wan_routes._route import Injection, Route

if TYPE_CHECKING:
    from worldsim.world_models._wan_net import NetSpec

WIDE = 500
"""Latents of at least this width go through two layers, narrower ones through three."""
NARROW_HIDDEN = 1280
ALPHA = 0.3
"""Where ``action_alpha`` starts in the reference's scripts."""


class PooledActions(nn.Module):
    """A clip's action rows -> one offset for its text tokens: ``action_alpha * action_proj(mean over rows)``.

    The keys ``action_proj.{0,2,4}.{weight,bias}`` and ``action_alpha`` are the reference's. Its last layer starts random,
    ours at zero. ``null`` is ours: what a clip gets whose actions are hidden.

    Args:
        action_dim: A. dim: D, width of the transformer. hidden: width of the first layer.
    """

    def __init__(self, action_dim: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        sizes = [action_dim, hidden, dim] if action_dim >= WIDE else [action_dim, hidden, dim, dim]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.action_proj = nn.Sequential(*layers[:-1])
        self.action_alpha = nn.Parameter(torch.tensor(ALPHA))
        self.null = nn.Parameter(torch.zeros(dim))
        nn.init.zeros_(self.action_proj[-1].weight)
        nn.init.zeros_(self.action_proj[-1].bias)

    def forward(self, actions: Tensor, history: Tensor | int = 1, dropped: Tensor | None = None) -> Tensor:
        """``[B, F - 1, r, A]`` -> ``[B, 1, D]``.

        Args:
            history: given latents, ``[B]`` or one number; the rows before the last given frame drive nothing and do not
                count. With one given latent, as in the reference, every row counts.
            dropped: bool ``[B]``, clips whose actions are hidden.
        """
        batch, steps = actions.shape[:2]
        past = PACK * (torch.as_tensor(history, device=actions.device).expand(batch) - 1)
        counts = (torch.arange(steps, device=actions.device) >= past[:, None]).to(actions.dtype)
        per_step = actions.mean(dim=2)
        mean = (per_step * counts[..., None]).sum(1) / counts.sum(1, keepdim=True)
        offset = self.action_alpha * self.action_proj(mean)
        if dropped is not None:
            offset = torch.where(dropped[:, None], self.null.to(offset.dtype), offset)
        return offset[:, None]


def conditioner(geometry: Geometry, spec: NetSpec) -> PooledActions:
    return PooledActions(spec.action_dim, geometry.width, spec.hidden)


def hidden(geometry: Geometry, action_dim: int) -> int:
    """The reference's: the transformer's width for wide latents, 1280 for narrow ones."""
    return geometry.width if action_dim >= WIDE else min(NARROW_HIDDEN, geometry.width)


def attach(transformer: WanTransformer3DModel, injection: Injection) -> None:
    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Embedded text ``[B, L, D]``, padding included, plus ``[B, 1, D]``."""
        return output + injection.now.to(output.dtype)

    transformer.condition_embedder.text_embedder.register_forward_hook(add)


ROUTE = Route(conditioner, attach, hidden, aligned=False)
