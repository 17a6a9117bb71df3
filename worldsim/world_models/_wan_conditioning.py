"""How given frames enter a Wan transformer: times, mask and channels. How actions do: ``_wan_routes``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from worldsim.encoders.wan_vae import PACK
from worldsim.world_models._wan_geometries import Geometry
from worldsim.world_models._wan_routes import ROUTES, find


def check_route(route: str) -> None:
    """
    Raises:
        UserError: an unknown route; lists those there are.
    """
    find(route)


def per_latent_time(geometry: Geometry, route: str) -> bool:
    """Whether each latent has a time of its own (history at 0): TI2V by design, T2V because it has no other way in."""
    return geometry.family != "i2v" or ROUTES[route].own_times


class SpreadTime:
    """Repeats per-latent time embeddings over a latent's tokens, after the time networks instead of before them.

    diffusers embeds one time per token; all tokens of a latent share theirs, so embedding F' times and repeating gives the
    same numbers for a fraction of the work.
    """

    def __init__(self) -> None:
        self.tokens = 1

    def __call__(self, module: nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        time, modulation, *rest = output
        if time.ndim == 2:
            return output
        return (time.repeat_interleave(self.tokens, 1), modulation.repeat_interleave(self.tokens, 1), *rest)


def given_latents(history: Tensor, latents: int) -> Tensor:
    """Which latents are given, bool ``[B, F']``, from their number per clip, ``[B]``."""
    return torch.arange(latents, device=history.device) < history[:, None]


def condition_channels(condition: Tensor, given: Tensor) -> Tensor:
    """The 20 extra input channels of image-to-video models: mask 4, then the encoded given frames 16.

    Args:
        condition: normalised latents of [given frames, grey …], ``[B, z, F', h, w]``.
        given: bool ``[B, F']``.
    """
    mask = given.to(condition.dtype)[:, None, :, None, None]
    return torch.cat([mask.expand(-1, PACK, -1, *condition.shape[3:]), condition], dim=1)
