"""LeRobot's config of an exported world-modality policy. What the policy is stands in ``card.json`` beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig

KIND = "worldsim_world_modality"


@PreTrainedConfig.register_subclass(KIND)
@dataclass
class WorldsimWorldModalityConfig(PreTrainedConfig):
    """
    Attributes:
        n_action_steps: rows of a chunk that are carried out before the policy looks again.
        chunk_size: rows that it plans.
        cameras: LeRobot's image feature -> the policy's own camera.
        normalization_mapping: nothing: the policy normalises by the statistics in its own card.
    """

    n_obs_steps: int = 1
    chunk_size: int = 8
    n_action_steps: int = 8
    cameras: dict[str, str] = field(default_factory=dict)
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )

    def validate_features(self) -> None:
        """
        Raises:
            ValueError: an image feature without a camera, or steps that the chunk does not have.
        """
        missing = [key for key in self.image_features if key not in self.cameras]
        if missing:
            raise ValueError(f"cameras names no camera of the policy for {missing[0]}")
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(f"n_action_steps = {self.n_action_steps} of a chunk of {self.chunk_size}")

    def get_optimizer_preset(self) -> Any:
        raise NotImplementedError("this policy is trained with `worldsim train --config world_modality_c DATA`")

    def get_scheduler_preset(self) -> None:
        return None

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None
