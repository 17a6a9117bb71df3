"""SmolVLA's action expert, the numbers that its action projection turns into the flow's velocity."""

from __future__ import annotations

from typing import Self

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

    @classmethod
    def tiny(cls) -> Self:
        checkpoint, loaded = _twins.smolvla()
        return cls(checkpoint, "cpu", Options(), loaded)
