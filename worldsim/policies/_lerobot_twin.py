"""A random ACT of LeRobot's own class for an environment: its real pipelines, small sizes, no download."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from worldsim.core.files import read_json
from worldsim.core.protocols import Environment
from worldsim.lerobot_policy.checkpoint import CONFIG, Checkpoint
from worldsim.lerobot_policy.loading import Loaded

CHUNK = 4
SPREAD = 0.05
"""Standard deviation of the twin's actions, as a part of half the action range: they stay inside the box."""


def act_for(env: Environment) -> tuple[Checkpoint, Loaded]:
    """Sees every camera and the state of ``env``; its actions lie around the middle of the action box."""
    from lerobot.policies import ACTConfig, make_pre_post_processors
    from lerobot.policies.act.modeling_act import ACTPolicy

    small = {"dim_model": 32, "n_heads": 4, "dim_feedforward": 64, "n_encoder_layers": 1, "n_vae_encoder_layers": 1}
    steps: dict[str, Any] = {"chunk_size": CHUNK, "n_action_steps": CHUNK - 1}
    config = ACTConfig(**_features(env), **small, **steps, pretrained_backbone_weights=None, device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = ACTPolicy(config).eval()
    pipelines = make_pre_post_processors(config, dataset_stats=_statistics(config, env))
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        written = read_json(Path(folder) / CONFIG)
    return Checkpoint(None, written, 0, "twin"), Loaded(policy, *pipelines)


def _features(env: Environment) -> dict[str, dict[str, Any]]:
    from lerobot.configs import FeatureType, PolicyFeature

    shown = env.observation_space["pixels"].spaces  # type: ignore[attr-defined]
    images = {
        f"observation.images.{name}": PolicyFeature(type=FeatureType.VISUAL, shape=(3, *box.shape[:2]))
        for name, box in shown.items()
    }
    state = {"observation.state": PolicyFeature(type=FeatureType.STATE, shape=(len(env.state_names),))}
    action = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(env.action_spec.dim,))}
    return {"input_features": images | state, "output_features": action}


def _statistics(config: Any, env: Environment) -> dict[str, dict[str, torch.Tensor]]:
    out = {}
    for key, feature in config.input_features.items():
        shape = (feature.shape[0], 1, 1) if len(feature.shape) == 3 else feature.shape
        image = len(feature.shape) == 3
        out[key] = {"mean": torch.full(shape, 0.5 if image else 200.0), "std": torch.full(shape, 0.25 if image else 100.0)}
    low, high = torch.tensor(env.action_space.low), torch.tensor(env.action_space.high)
    out["action"] = {"mean": (low + high) / 2, "std": SPREAD * (high - low) / 2}
    return out
