"""SmolVLA's action expert, the numbers that its action projection turns into the flow's velocity."""

from __future__ import annotations

from typing import Any, Self

import torch

from worldsim.core.registry import register
from worldsim.latent_actions import Options, _twins
from worldsim.latent_actions._flow_policy import FlowPolicy

CARD = {
    "title": "Latents of a LeRobot SmolVLA policy: input of model.action_out_proj at the last flow step",
    "source": "https://arxiv.org/abs/2506.01844 (policy); WorldEval's Policy2Vec, https://arxiv.org/abs/2505.19017",
    "size": "the policy's own folder, and the config and tokenizer of its language model",
    "license": "Apache-2.0",
}


@register("latent_actions")
class Smolvla(FlowPolicy):
    """``[T, expert width]``, 720 for the published policy."""

    KIND = "smolvla"
    _half = False

    def prepare(self, config: Any) -> None:
        """The file holds the language model; LeRobot would load it from its own repository, in bfloat16, and replace it."""
        self._half, config.load_vlm_weights = config.load_vlm_weights, False

    def rename_keys(self, policy: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._half:
            policy.model.vlm_with_expert.vlm.to(torch.bfloat16)
        return weights

    @classmethod
    def tiny(cls) -> Self:
        checkpoint, loaded = _twins.smolvla()
        return cls(checkpoint, "cpu", Options(), loaded)
