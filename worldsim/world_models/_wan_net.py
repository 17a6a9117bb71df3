"""A Wan transformer with LoRA and an action conditioner: one module that predicts velocities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from torch import Tensor, nn

from worldsim.core.errors import UserError, and_more
from worldsim.encoders import seeded
from worldsim.nn import flow
from worldsim.world_models._wan_conditioning import SpreadTime, condition_channels, given_latents, per_latent_time
from worldsim.world_models._wan_geometries import Geometry
from worldsim.world_models._wan_routes import Injection, find

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
"""Self- and cross-attention and feed-forward, as the published Wan LoRAs; CLIP's added projections stay."""
ADAPTER = "default"
LEAST_SIGMA = 0.05
"""Below this time an error in a predicted sample counts as it does here."""
SMALLEST_SIGMA = 1e-4
"""Keeps the division defined at time 0, which no sampler asks for."""


@dataclass(frozen=True)
class NetSpec:
    """What is built around a base; saved in the checkpoint's card.

    Attributes:
        action_dim: A.
        rows_per_frame: r, action rows between two video frames.
        route: a key of ``_wan_routes.ROUTES``.
        hidden: width of the conditioner.
        rank: LoRA rank; 0 trains every weight of the transformer instead.
        alpha: LoRA scale is alpha / rank.
        targets: endings of the names of the layers that get a LoRA.
        sums: the conditioner also sees the running sums of the rows.
    """

    action_dim: int
    rows_per_frame: int
    route: str
    hidden: int
    rank: int
    alpha: float
    targets: tuple[str, ...] = LORA_TARGETS
    sums: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # JSON knows lists only


class WanNet(nn.Module):
    """Noisy latents, times, text, actions and given frames in; velocity out, fp32."""

    def __init__(self, transformer: WanTransformer3DModel, geometry: Geometry, spec: NetSpec, seed: int = 0) -> None:
        super().__init__()
        self.geometry, self.spec = geometry, spec
        self.transformer, route = transformer, find(spec.route)
        seeded(lambda: _make_trainable(transformer, spec), seed)
        self._own = [name for name, p in transformer.named_parameters() if p.requires_grad]
        self.conditioner = seeded(lambda: route.conditioner(geometry, spec), seed)
        self.injection = Injection()
        route.attach(transformer, self.injection)
        self.per_latent = per_latent_time(geometry, spec.route)
        self.spread = SpreadTime()
        transformer.condition_embedder.register_forward_hook(self.spread)

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.patch_embedding.weight.dtype

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        text: Tensor,
        actions: Tensor,
        history: Tensor,
        dropped: Tensor | None = None,
        condition: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """Velocity ``[B, z, F', h, w]``.

        Args:
            x: ``[B, z, F', h, w]``; given latents are clean where the family has a time per latent.
            time: 1000 sigma, fp32 ``[B]``; given latents get 0 where the family has a time per latent.
            text: ``[B, L, text_dim]``, zero-padded.
            actions: normalised, fp32 ``[B, F - 1, r, A]``.
            history: given latents, ``[B]``, >= 1.
            dropped: bool ``[B]``, clips whose actions are hidden.
            condition: encoded given frames ``[B, z, F', h, w]``, for image-to-video.
            image: CLIP tokens ``[B, n, image_dim]``, for models with that branch.
        """
        latents, height, width = x.shape[2:]
        given = given_latents(history, latents)
        sigma = time.float() / flow.TIMESTEPS
        if self.per_latent:
            clean = given & (self.geometry.family != "i2v")
            time = torch.where(clean, torch.zeros_like(time)[:, None], time[:, None])
        if condition is not None:
            x = torch.cat([x, condition_channels(condition.to(x.dtype), given)], dim=1)
        _, patch_h, patch_w = self.transformer.config.patch_size
        self.spread.tokens = (height // patch_h) * (width // patch_w)
        self.injection.vectors = self.conditioner(actions, history, dropped)
        out = self.transformer(
            hidden_states=x.to(self.dtype),
            timestep=time,
            encoder_hidden_states=text.to(self.dtype),
            encoder_hidden_states_image=None if image is None else image.to(self.dtype),
            return_dict=False,
        )[0]
        self.injection.vectors = None
        return self._velocity(out.float(), x[:, : out.shape[1]], sigma)

    def _velocity(self, out: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """What the transformer gave as a velocity. From a predicted sample: ``(x - sample) / sigma``.

        # source: "Back to Basics: Let Denoising Generative Models Denoise" (Li & He 2025), x-prediction with v-loss
        """
        if self.geometry.prediction == "velocity":
            return out
        return (x.float() - out) / sigma.clamp_min(SMALLEST_SIGMA).view(-1, 1, 1, 1, 1)

    def trust(self, sigma: Tensor) -> Tensor:
        """What a clip's error in velocity is scaled by in the loss, ``[B]``: 1, but ``sigma / LEAST_SIGMA`` below that where
        the transformer predicts samples, whose errors would grow as 1 / sigma there. Prediction and target are scaled
        alike, so the best prediction stays the true one.
        """
        return torch.ones_like(sigma) if self.geometry.prediction == "velocity" else (sigma / LEAST_SIGMA).clamp_max(1.0)

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained and saved, by the name it is saved under: diffusers' LoRA keys, and ``conditioner.*``."""
        parameters = dict(self.transformer.named_parameters())
        own = {f"transformer.{_saved(name)}": parameters[name] for name in self._own}
        return own | {f"conditioner.{name}": p for name, p in self.conditioner.named_parameters()}

    @torch.no_grad()
    def load_trained(self, tensors: dict[str, Tensor], source: str) -> None:
        """Fill in saved tensors; every key must be there and none may be left over.

        Raises:
            UserError: naming the first key that is missing, unknown, or of another shape.
        """
        mine = self.trained()
        for wrong, kind in ((mine.keys() - tensors.keys(), "lacks"), (tensors.keys() - mine.keys(), "has an unknown key")):
            if wrong:
                raise UserError(f"{source} {kind} {min(wrong)}{and_more(wrong)}")
        for name, parameter in mine.items():
            if parameter.shape != tensors[name].shape:
                raise UserError(f"{source}: {name} has shape {list(tensors[name].shape)}, not {list(parameter.shape)}")
            parameter.copy_(tensors[name])

    def merge(self) -> None:
        """Fold the LoRA into the base weights: the same output with fewer operations. Cannot be trained further."""
        if self.spec.rank:
            self.transformer.fuse_lora()
            self.transformer.unload_lora()


def _make_trainable(transformer: WanTransformer3DModel, spec: NetSpec) -> None:
    """Add LoRA layers in fp32, whatever the base is in; or, for rank 0, release every weight."""
    if spec.rank == 0:
        transformer.requires_grad_(True)
        return
    targets = list(spec.targets)
    transformer.add_adapter(
        LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=targets, init_lora_weights=True), ADAPTER
    )
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _saved(name: str) -> str:
    return name.replace(f".{ADAPTER}.", ".")
