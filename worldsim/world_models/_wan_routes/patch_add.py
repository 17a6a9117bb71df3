"""``patch-add``: a latent's vector is added to every token of that latent, right after the patch embedding."""

from __future__ import annotations

from typing import Any

from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from worldsim.world_models._wan_routes._route import Injection, Route, per_latent


def attach(transformer: WanTransformer3DModel, injection: Injection) -> None:
    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """``[B, D, F', h', w']`` plus ``[B, F', D]``."""
        return output + injection.now.transpose(1, 2)[..., None, None].to(output.dtype)

    transformer.patch_embedding.register_forward_hook(add)


ROUTE = Route(per_latent, attach)
