"""An exported world-modality policy as a LeRobot policy: one actor per environment of the batch, one network for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from worldsim import policies, tokenizers
from worldsim.core.protocols import SupportsFork, SupportsObserve
from worldsim.lerobot_plugin.configuration_worldsim_world_modality import WorldsimWorldModalityConfig
from worldsim.policies.world_modality import WorldModality

STATE = "observation.state"
TRAINED_HERE = "this policy is trained with `worldsim train --config world_modality_c DATA`, not with lerobot-train"


class WorldsimWorldModalityPolicy(PreTrainedPolicy):
    """See ``worldsim.policies.world_modality``; here it speaks LeRobot's batches.

    Args:
        policy: the loaded policy; :meth:`from_pretrained` supplies it.
    """

    config_class = WorldsimWorldModalityConfig
    name = "worldsim_world_modality"

    def __init__(self, config: WorldsimWorldModalityConfig, policy: WorldModality | None = None, **ignored: Any) -> None:
        super().__init__(config)
        if policy is None:
            raise NotImplementedError(TRAINED_HERE)
        self.policy, self.net = policy, policy.net
        self.reset()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **more: Any
    ) -> Self:
        """From a folder that ``worldsim models export --to lerobot`` wrote."""
        folder = Path(pretrained_name_or_path)
        config = config or PreTrainedConfig.from_pretrained(folder, local_files_only=True)
        policy = policies.load(folder, device=str(config.device), tokenizer_loader=tokenizers.load)
        assert isinstance(policy, WorldModality), folder
        policy.execute = config.n_action_steps
        return cls(config, policy).eval()

    def reset(self) -> None:
        """Forget every environment's history."""
        self.actors: list[Any] = []
        self.queues: list[list[np.ndarray]] = []

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **ignored: Any) -> Tensor:
        """The next action of each environment, float32 ``[B, A]`` in physical units."""
        rows = []
        for k, observation in enumerate(self._observations(batch)):
            if not self.queues[k]:
                self.queues[k] = list(self.actors[k].act(observation))
            elif isinstance(self.actors[k], SupportsObserve) and self.actors[k].looks_back:
                self.actors[k].observe(observation)
            rows.append(self.queues[k].pop(0))
        return torch.from_numpy(np.stack(rows)).to(self.config.device)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **ignored: Any) -> Tensor:
        """The next ``n_action_steps`` actions of each environment, float32 ``[B, K, A]`` in physical units."""
        chunks = [self.actors[k].act(observation) for k, observation in enumerate(self._observations(batch))]
        return torch.from_numpy(np.stack(chunks)).to(self.config.device)

    def _observations(self, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """One per environment, as ``core.protocols.Environment`` gives them: frames become uint8 again, exactly."""
        views = {}
        for feature, camera in self.config.cameras.items():
            pixels = (batch[feature].float() * 255).round().clamp(0, 255).to(torch.uint8)
            views[camera] = pixels.permute(0, 2, 3, 1).cpu().numpy()
        count = len(next(iter(views.values())))
        if len(self.actors) != count:
            assert isinstance(self.policy, SupportsFork)
            self.actors, self.queues = [self.policy.fork() for _ in range(count)], [[] for _ in range(count)]
            for actor in self.actors:
                actor.reset()
        states = batch[STATE].float().cpu().numpy() if STATE in batch else None
        return [
            {
                "pixels": {camera: np.ascontiguousarray(view[k]) for camera, view in views.items()},
                **({} if states is None else {"agent_pos": states[k]}),
            }
            for k in range(count)
        ]

    def forward(self, batch: dict[str, Tensor], **ignored: Any) -> tuple[Tensor, dict | None]:
        raise NotImplementedError(TRAINED_HERE)

    def get_optim_params(self) -> Any:
        return self.net.parameters()
