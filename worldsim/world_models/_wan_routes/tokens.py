"""``tokens``: one token per latent takes the place of the text's zero padding, and is seen through cross-attention.

The text keeps its length, so that the fixed split between text and CLIP tokens stays valid, and nothing new enters the
softmax: before training an action token is zero, as the padding that it stands for, which Wan never masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from worldsim.core.errors import UserError, again
from worldsim.encoders.wan_vae import PACK
from worldsim.nn.action_embedder import ActionEmbedder
from worldsim.world_models._wan_geometries import Geometry
from worldsim.world_models._wan_routes._route import Injection, Route

if TYPE_CHECKING:
    from worldsim.world_models._wan_net import NetSpec


def conditioner(geometry: Geometry, spec: NetSpec) -> ActionEmbedder:
    """Vectors of the text's width. Cross-attention has no positions, so each is told which latent it drives."""
    width = geometry.transformer["text_dim"]
    return ActionEmbedder(PACK * spec.rows_per_frame, spec.action_dim, width, spec.hidden, indexed=True, sums=spec.sums)


def attach(transformer: WanTransformer3DModel, injection: Injection) -> None:
    def put(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Text ``[B, L, text_dim]`` with ``[B, F', text_dim]`` added to its last places.

        Adding to zeros replaces them; a prompt so long that it reaches there keeps its words.
        """
        text, vectors = inputs[0], injection.now
        if text.shape[1] == 1:  # a model without text: a row of equal zeros reads like the one that it always gets
            text = text.expand(-1, vectors.shape[1], -1)
        places, count = text.shape[1], vectors.shape[1]
        if count > places:
            raise UserError(
                f"the route tokens needs {count} places at the end of the text, and this model's text has {places}",
                again(route="patch-add"),
            )
        tail = text[:, places - count :] + vectors.to(text.dtype)
        return (torch.cat([text[:, : places - count], tail], dim=1), *inputs[1:])

    transformer.condition_embedder.text_embedder.register_forward_pre_hook(put)


ROUTE = Route(conditioner, attach)
