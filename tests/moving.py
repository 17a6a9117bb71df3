"""A world that can be learned in seconds: a block that goes where it is told, and a base model small enough to learn it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel

from worldsim.core import registry
from worldsim.core.types import ActionSpec, CameraInfo, DatasetCard, Episode, FrameStream
from worldsim.encoders.patch_vae import PatchVAE
from worldsim.world_models._wan_geometries import Geometry

SIDE, BLOCK = 32, 12
GEOMETRY = Geometry(
    "moving-tiny",
    "ti2v",
    {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "num_layers": 2,
        "ffn_dim": 128,
        "in_channels": 32,
        "out_channels": 32,
        "text_dim": 16,
        "freq_dim": 64,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "rope_max_seq_len": 32,
    },
    stride=8,
    area=SIDE * SIDE,
    fps=10.0,
    shift=3.0,
    text_tokens=1,
    prediction="sample",
    bundled=True,
)


def positions(number: int, steps: int) -> np.ndarray:
    """A smooth random walk of the block's left edge, ``[steps, 1]`` in -1 … 1, its own for each ``number``."""
    rng = np.random.default_rng([number, 77])
    speed, at, out = rng.normal(0, 0.25), rng.uniform(-1, 1), []
    for _ in range(steps):
        out.append([at])
        speed = 0.8 * speed + rng.normal(0, 0.15)
        at = at + speed
        speed, at = (-speed if abs(at) > 1 else speed), float(np.clip(at, -1, 1))
    return np.array(out, np.float32)


def picture(edge: np.ndarray) -> np.ndarray:
    """uint8 ``[32, 32, 3]``: a bright block with its left edge at ``edge`` (-1 … 1 over the room there is)."""
    x, y = round((float(edge[0]) + 1) / 2 * (SIDE - BLOCK)), (SIDE - BLOCK) // 2
    frame = np.full((SIDE, SIDE, 3), (40, 44, 60), np.uint8)
    frame[y : y + BLOCK, x : x + BLOCK] = (240, 200, 70)
    return frame


def write(folder: Path, episodes: int, steps: int, deal: np.ndarray | None = None) -> Path:
    """Episodes of ``steps + 1`` frames; ``actions[t]`` is where the block stands at ``t + 1``.

    Args:
        deal: for each episode, whose actions it is recorded with; its own without.
    """
    names = ("x",)
    spec = ActionSpec(names, ("1",), mode="absolute", space="planar", rate=10.0)
    card = DatasetCard("moving", "moving", 10.0, (CameraInfo("camera", SIDE, SIDE),), actions=spec, state_names=names)
    writer = registry.get("formats", "act-hdf5").create(folder, card)
    for number in range(episodes):
        path = positions(number, steps + 1)
        told = positions(number if deal is None else int(deal[number]), steps + 1)
        frames = FrameStream.of(np.stack([picture(at) for at in path]))
        name = f"episode_{number:06d}"
        actions = np.concatenate([told[1:], told[-1:]])
        writer.commit(writer.stage(Episode(name, number, "moving", 10.0, {"camera": frames}, actions, path, "follow")))
    writer.finalize(card)
    return folder


def write_base(bases: Path) -> None:
    """``bases/moving-tiny`` in diffusers' layout: a random transformer, and the linear codec fitted to such a world."""
    folder = bases / GEOMETRY.name
    codec = PatchVAE(z_dim=GEOMETRY.channels)
    clips = np.stack([[picture(at) for at in positions(1000 + k, 9)] for k in range(96)])
    codec.fit([torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1])
    codec.save_pretrained(folder / "vae")
    torch.manual_seed(0)
    WanTransformer3DModel(**GEOMETRY.transformer).save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text(json.dumps({"expand_timesteps": True}))


class Follower:
    """A world model of that world which needs no training: it paints what it is told."""

    height = width = SIDE
    fps, context_frames = 10.0, 1
    action_spec = None

    def rollout(self, context, actions, *, num_samples: int = 1, seeds=None) -> np.ndarray:
        films = np.stack([[picture(rows[-1]) for rows in steps] for steps in np.asarray(actions)])
        return np.repeat(films[:, None], num_samples, axis=1)
