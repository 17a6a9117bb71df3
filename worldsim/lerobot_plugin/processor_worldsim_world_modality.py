"""Pipelines that change names, batch and device alone: the policy itself knows how its numbers are scaled."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    RenameObservationsProcessorStep,
    make_policy_processor_pipelines,
)

from worldsim.lerobot_plugin.configuration_worldsim_world_modality import WorldsimWorldModalityConfig


def make_worldsim_world_modality_pre_post_processors(
    config: WorldsimWorldModalityConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """The pre- and the post-processor; ``dataset_stats`` are not read."""
    before = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=config.device),
    ]
    return make_policy_processor_pipelines(input_steps=before, output_steps=[DeviceProcessorStep(device="cpu")])
