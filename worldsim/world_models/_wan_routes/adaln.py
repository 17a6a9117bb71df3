"""``adaln``: a latent's vector is added to its time embedding, before that becomes the six modulations of each block."""

from __future__ import annotations

from typing import Any

from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from worldsim.core.errors import UserError
from worldsim.world_models._wan_routes._route import Injection, Route, per_latent


def attach(transformer: WanTransformer3DModel, injection: Injection) -> None:
    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """``[B, n F', D]`` plus ``[B, F', D]``: a time per latent (n = 1), or per token as diffusers' pipelines give it."""
        vectors = injection.now
        if output.ndim != 3 or output.shape[1] % vectors.shape[1]:
            raise UserError("the route adaln needs a time per latent, and this pipeline gives the whole clip one")
        return output + vectors.repeat_interleave(output.shape[1] // vectors.shape[1], dim=1).to(output.dtype)

    transformer.condition_embedder.time_embedder.register_forward_hook(add)


ROUTE = Route(per_latent, attach, own_times=True)
