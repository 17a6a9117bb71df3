"""ACT's decoder output, the numbers that its linear action head turns into actions."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from worldsim.core.errors import UserError, again
from worldsim.core.registry import register
from worldsim.latent_actions import Options, _twins
from worldsim.latent_actions._policy import PolicyLatents
from worldsim.lerobot_policy.checkpoint import STATE, camera_name

CARD = {
    "title": "Latents of a LeRobot ACT policy: input of model.action_head",
    "source": "https://arxiv.org/abs/2304.13705 (policy); WorldEval's Policy2Vec, https://arxiv.org/abs/2505.19017",
    "size": "the policy's own folder",
    "license": "Apache-2.0",
}
REFERENCE_CAMERAS = ("top", "front")
"""The order in which WorldEval's ACT variant hands cameras over. source: aphamm/world-eval, extract-latent-action.py"""


@register("latent_actions")
class Act(PolicyLatents):
    """``[T, dim_model]``: the plan made at each chunk's start, one row per frame.

    ``action_head(row)``, un-normalised by the policy's post-processor, is the action that the policy intends there.
    """

    KIND, HEAD = "act", "model.action_head"

    @classmethod
    def check(cls, options: Options) -> None:
        """``compat`` is defined for chunks, as the reference has it."""
        if options.compat is not None and options.mode != "chunk":
            raise UserError(
                f"compat = {options.compat} takes the policy's whole chunks, not mode = {options.mode}",
                again(mode="chunk"),
            )

    @property
    def chunk(self) -> int:
        """The executed steps; the reference takes whole chunks."""
        return int(self.checkpoint.config[self.CHUNK]) if self.options.compat else super().chunk

    @property
    def batch(self) -> int:
        """The reference hands over one observation at a time; another batch changes the last bits."""
        return 1 if self.options.compat else super().batch

    def predict(self, batch: dict[str, Any], generators: list[torch.Generator]) -> Tensor:
        if self.options.compat is None:
            return super().predict(batch, generators)
        return self._as_worldeval(batch)

    def _as_worldeval(self, batch: dict[str, Any]) -> Tensor:
        """The bare model on images in 0..1 and the state as recorded, without the policy's normalisation.

        source: aphamm/world-eval, extract-latent-action.py
        """
        names = {camera_name(key): key for key in map(self.checkpoint.received_as, self.checkpoint.images())}
        first = [name for own in REFERENCE_CAMERAS for name in (own, f"cam_{own}") if name in names]
        order = first + [name for name in names if name not in first]
        bare: dict[str, Any] = {"observation.images": [batch[names[name]].to(self.device) for name in order]}
        if self.checkpoint.state_dim() is not None:
            bare[STATE] = batch[self.checkpoint.received_as(STATE)].to(self.device)
        return self.loaded.policy.model(bare)[0]

    @classmethod
    def tiny(cls) -> Self:
        checkpoint, loaded = _twins.act()
        return cls(checkpoint, "cpu", Options(), loaded)
