"""The tiny twin of a world-modality policy: random weights, and a codebook of random projections in the place of k-means."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from worldsim.core.protocols import Environment
from worldsim.data.policy_windows import Scaling
from worldsim.data.transforms import Normalize
from worldsim.policies._world_modality_card import ModalityCard
from worldsim.policies._world_modality_files import net_of
from worldsim.policies._world_modality_net import ModalityNet
from worldsim.policies._world_modality_sizes import NetSpec

SIDE, WIDTH, CODES = 4, 8, 16


class TinyTokens:
    """Frames averaged to 4 x 4, projected at random onto 8 numbers; the nearest of 16 random points."""

    codes, frame_tokens, codebook_hash = CODES, 1, "tiny"

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.projection = torch.randn(3 * SIDE * SIDE, WIDTH, generator=draw)
        self.centroids = torch.randn(CODES, WIDTH, generator=draw)

    def embed(self, frames: Any) -> Tensor:
        pixels = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return (adaptive_avg_pool2d(pixels, SIDE).flatten(1) @ self.projection)[:, None].half()

    def assign(self, embeddings: Any) -> Tensor:
        return torch.cdist(embeddings.float(), self.centroids[None]).argmin(-1)


def twin(env: Environment) -> tuple[ModalityNet, ModalityCard, TinyTokens]:
    """Sized for ``env``: its first camera, its state, its actions; chunks of 2."""
    shown = env.observation_space["pixels"].spaces  # type: ignore[attr-defined]
    camera = min(shown)
    low, high = env.action_space.low.astype(np.float64), env.action_space.high.astype(np.float64)
    names = tuple(env.state_names)
    scaling = Scaling(
        actions=Normalize((low + high) / 2, (high - low) / 20),
        states=Normalize(np.zeros(len(names)), np.ones(len(names))) if names else None,
        low=low,
        high=high,
        image_shift=np.zeros(WIDTH, np.float32),
        image_scale=np.ones(WIDTH, np.float32),
    )
    sizes = {"d_model": 32, "layers": 1, "heads": 2, "inner": 64, "dropout": 0.0}
    spec = NetSpec("C", 2, 2, 2, len(names), len(low), WIDTH, 1, CODES, **sizes)  # type: ignore[arg-type]
    card = ModalityCard(
        net=spec,
        scaling=scaling,
        camera=camera,
        cameras={camera: shown[camera].shape[:2]},
        fps=float(env.fps),
        state_names=names,
        action_spec=env.action_spec,
        tokenizer={"codebook_hash": TinyTokens.codebook_hash, "codes": CODES},
    )
    return net_of(card), card, TinyTokens()
