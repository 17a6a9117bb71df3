"""Diffusion Policy's last U-Net feature, the numbers that its final 1x1 convolution turns into the predicted noise."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from worldsim.core.registry import register
from worldsim.latent_actions import Options, _twins
from worldsim.latent_actions._policy import PolicyLatents, draw
from worldsim.lerobot_policy.observations import Observations

CARD = {
    "title": "Latents of a LeRobot Diffusion Policy: input of the U-Net's last convolution at the last denoising step",
    "source": "https://arxiv.org/abs/2303.04137 (policy); WorldEval's Policy2Vec, https://arxiv.org/abs/2505.19017",
    "size": "the policy's own folder",
    "license": "Apache-2.0",
}


@register("latent_actions")
class Diffusion(PolicyLatents):
    """``[T, down_dims[0]]``. The policy's horizon begins at its oldest observation; rows begin at the newest."""

    KIND, HEAD, CHUNK, SAMPLES = "diffusion", "diffusion.unet.final_conv.1", "horizon", True

    def _observations(self) -> Observations:
        steps = int(self.checkpoint.config["n_obs_steps"])
        return Observations(self.checkpoint, self.options.cameras, deltas=tuple(range(1 - steps, 1)), stacked=True)

    def predict(self, batch: dict[str, Any], generators: list[torch.Generator]) -> Tensor:
        """Every step's noise too comes from the sample's own generator, whatever else is in the batch."""
        model = self.loaded.policy.diffusion
        whole = model.conditional_sample
        model.conditional_sample = partial(whole, generator=generators)
        try:
            return super().predict(batch, generators)
        finally:
            del model.conditional_sample

    def noise(self, generators: list[torch.Generator]) -> Mapping[str, Any]:
        config = self.loaded.policy.config
        return {"noise": draw(generators, (config.horizon, config.action_feature.shape[0]), self.device)}

    def aligned(self, latents: Tensor) -> Tensor:
        """``[B, D, horizon]`` -> ``[B, horizon - n_obs_steps + 1, D]``."""
        return latents.transpose(1, 2)[:, len(self.observations.deltas) - 1 :]

    @classmethod
    def tiny(cls) -> Self:
        checkpoint, loaded = _twins.diffusion()
        return cls(checkpoint, "cpu", Options(), loaded)
