"""What a route is: a module that turns actions into vectors, and hooks that put these into a Wan transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from worldsim.encoders.wan_vae import PACK
from worldsim.nn.action_embedder import ActionEmbedder
from worldsim.world_models._wan_geometries import Geometry

if TYPE_CHECKING:  # the net is built from routes
    from worldsim.world_models._wan_net import NetSpec


class Injection:
    """What a route's hooks read during one forward pass: the conditioner's output, set before and cleared after."""

    def __init__(self) -> None:
        self.vectors: Tensor | None = None

    @property
    def now(self) -> Tensor:
        assert self.vectors is not None, "the transformer was called outside of its net"
        return self.vectors


@dataclass(frozen=True)
class Route:
    """One way of actions into the transformer. What it adds is zero before training: the base's output is unchanged.

    Attributes:
        conditioner: makes the trained module, ``(actions [B, F - 1, r, A], history, dropped) -> vectors``.
        attach: installs the hooks that read an :class:`Injection`.
        hidden: the conditioner's inner width when the user names none, from (geometry, A).
        own_times: it needs one time embedding per latent even where all latents share one time.
        aligned: each latent has its own vector; otherwise a clip has one, and the order of its actions is lost.
    """

    conditioner: Callable[[Geometry, NetSpec], nn.Module]
    attach: Callable[[WanTransformer3DModel, Injection], None]
    hidden: Callable[[Geometry, int], int] = lambda geometry, action_dim: geometry.width
    own_times: bool = False
    aligned: bool = True


def per_latent(geometry: Geometry, spec: NetSpec) -> ActionEmbedder:
    """One vector of the transformer's width per latent."""
    return ActionEmbedder(PACK * spec.rows_per_frame, spec.action_dim, geometry.width, spec.hidden, sums=spec.sums)
