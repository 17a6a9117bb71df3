"""A world-modality policy with random weights and a real k-means tokenizer, on disk as training leaves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from worldsim.core.protocols import Environment
from worldsim.data.policy_windows import Scaling
from worldsim.data.transforms import Normalize
from worldsim.policies._world_modality_card import ModalityCard
from worldsim.policies._world_modality_files import TOKENIZER, net_of
from worldsim.policies._world_modality_net import NetSpec
from worldsim.tokenizers.kmeans import KMeans
from worldsim.train import checkpoint

CONTEXT, HORIZON, FUTURE = 3, 4, 2


def write(run: Path, env: Environment, arm: str = "C_hist", **card: Any) -> Path:
    """``run/checkpoint/`` for the first camera, the state and the actions of ``env``; ``card``: other values of its card."""
    tokenizer = KMeans.tiny()
    shown = env.observation_space["pixels"].spaces  # type: ignore[attr-defined]
    camera, names = min(shown), tuple(env.state_names)
    low, high = env.action_space.low.astype(np.float64), env.action_space.high.astype(np.float64)
    scaling = Scaling(
        actions=Normalize((low + high) / 2, (high - low) / 8),
        states=Normalize(np.full(len(names), 200.0), np.full(len(names), 100.0)),
        low=low,
        high=high,
        image_shift=np.zeros(tokenizer.dim, np.float32),
        image_scale=np.ones(tokenizer.dim, np.float32),
    )
    sizes: dict[str, Any] = {"d_model": 32, "layers": 1, "heads": 2, "inner": 64, "dropout": 0.0}
    patches = tokenizer.frame_tokens
    spec = NetSpec(arm, CONTEXT, HORIZON, FUTURE, len(names), len(low), tokenizer.dim, patches, tokenizer.codes, **sizes)
    values = {
        "net": spec,
        "scaling": scaling,
        "camera": camera,
        "cameras": {camera: shown[camera].shape[:2]},
        "fps": float(env.fps),
        "state_names": names,
        "action_spec": env.action_spec,
        "tokenizer": {"codebook_hash": tokenizer.codebook_hash},
    }
    whole = ModalityCard(**{**values, **card})
    folder = run / "checkpoint"
    weights = dict(net_of(whole).named_parameters())
    checkpoint.write_checkpoint(folder, {k: v.detach() for k, v in weights.items()}, whole.to_json(), 0)
    tokenizer.save(folder / TOKENIZER)
    return run
