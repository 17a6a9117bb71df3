"""pi0's action expert, the numbers that its action projection turns into the flow's velocity."""

from __future__ import annotations

from typing import Self

from worldsim.core.registry import register
from worldsim.latent_actions import Options, _twins
from worldsim.latent_actions._flow_policy import FlowPolicy

CARD = {
    "title": "Latents of a LeRobot pi0 policy: input of model.action_out_proj at the last flow step",
    "source": "https://arxiv.org/abs/2410.24164 (policy); WorldEval's Policy2Vec, https://arxiv.org/abs/2505.19017",
    "size": "the policy's own folder (14 GB), and PaliGemma's tokenizer",
    "license": "Apache-2.0; the weights follow Gemma's terms",
}


@register("latent_actions")
class Pi0(FlowPolicy):
    """``[T, expert width]``, 1024 for the published policy."""

    KIND = "pi0"

    @classmethod
    def tiny(cls) -> Self:
        checkpoint, loaded = _twins.pi0()
        return cls(checkpoint, "cpu", Options(), loaded)
