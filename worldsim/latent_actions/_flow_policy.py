"""What LeRobot's flow policies share: an action expert whose projection gives the flow's velocity, from noise of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from worldsim.latent_actions._policy import PolicyLatents, draw
from worldsim.lerobot_policy.bridge import bridged


class FlowPolicy(PolicyLatents):
    """Base of SmolVLA and pi0."""

    HEAD = "model.action_out_proj"
    SAMPLES, FIXED_SIZE, NEEDS_TEXT = True, False, True

    def predict(self, batch: dict[str, Any], generators: list[torch.Generator]) -> torch.Tensor:
        with bridged():
            return super().predict(batch, generators)

    def noise(self, generators: list[torch.Generator]) -> Mapping[str, Any]:
        config = self.loaded.policy.config
        return {"noise": draw(generators, (config.chunk_size, config.max_action_dim), self.device)}
