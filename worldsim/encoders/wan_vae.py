"""Wan's causal video VAE: 1 + 4K frames <-> 1 + K latents, the first of which depends on the first frame alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from worldsim.core.errors import UserError, again
from worldsim.core.files import read_json
from worldsim.core.registry import register
from worldsim.data.transforms import to_uint8, to_unit
from worldsim.encoders import from_folder, seeded
from worldsim.encoders.patch_vae import PatchVAE

CARD = {
    "title": "Wan video VAE (2.1: 16 channels, 8x8x4; 2.2: 48 channels, 16x16x4)",
    "source": "https://huggingface.co/Wan-AI",
    "size": "127 M or 705 M parameters",
    "license": "Apache-2.0",
}
TINY: dict[str, Any] = {
    "base_dim": 3,
    "z_dim": 16,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}
"""A random twin of the 2.1 VAE in 14 thousand parameters: the same class, strides and channels."""
PACK = 4
"""Frames per latent, after the first."""


def latent_count(frames: int) -> int:
    """Latents of a clip of ``frames`` = 4k + 1 frames.

    Raises:
        UserError: another number of frames, which the VAE would silently cut.
    """
    if frames < 1 or (frames - 1) % PACK:
        low = max(1, (frames - 1) // PACK * PACK + 1)
        raise UserError(
            f"frames = {frames} is not 4k + 1: the video VAE packs {PACK} frames into one latent after the first; "
            f"use {low} or {low + PACK}",
            again(frames=low + PACK),
        )
    return 1 + (frames - 1) // PACK


@register("encoders")
class WanVAE:
    """Frames <-> normalised latents ``(mode - mean) / std``; there is no scaling factor. Runs in fp32.

    One encode at a time per instance: the module keeps its causal caches on itself.
    """

    def __init__(self, module: AutoencoderKLWan | PatchVAE, device: str = "cpu") -> None:
        self.module = module.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)
        mean, std = module.config.latents_mean, module.config.latents_std
        shape = (1, len(mean), 1, 1, 1)
        self._mean = torch.tensor(mean, device=self.device).view(shape)
        self._std = torch.tensor(std, device=self.device).view(shape)

    @property
    def channels(self) -> int:
        return self.module.config.z_dim

    @property
    def stride(self) -> int:
        """Pixels per latent cell, each way."""
        return self.module.config.scale_factor_spatial

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> WanVAE:
        """From a folder in diffusers' layout (``vae/``): Wan's own class, or the bundled model's linear one."""
        path = folder / "vae" / "config.json"
        kind = read_json(path).get("_class_name") if path.exists() else None
        module = PatchVAE if kind == PatchVAE.__name__ else AutoencoderKLWan
        return cls(from_folder(module, folder, "vae", torch_dtype=torch.float32), device)

    @classmethod
    def random(cls, config: dict[str, Any], device: str = "cpu") -> WanVAE:
        """Random weights, the same everywhere."""
        return cls(seeded(lambda: AutoencoderKLWan(**config)), device)

    @classmethod
    def tiny(cls) -> WanVAE:
        return cls.random(TINY)

    @torch.no_grad()
    def encode(self, frames: np.ndarray, pad_to: int = 0) -> np.ndarray:
        """uint8 ``[B, F, H, W, 3]``, F = 4k + 1 -> float32 ``[B, z, 1 + k, h, w]``.

        Args:
            pad_to: follow the frames by mid-grey (0 in -1 … 1) up to this many: the condition of image-to-video models.
        """
        latent_count(frames.shape[1])
        video = torch.from_numpy(to_unit(frames)).to(self.device)
        if pad_to > frames.shape[1]:
            latent_count(pad_to)
            rest = video.new_zeros(*video.shape[:2], pad_to - frames.shape[1], *video.shape[3:])
            video = torch.cat([video, rest], dim=2)
        mode = self.module.encode(video).latent_dist.mode()
        return ((mode - self._mean) / self._std).cpu().numpy()

    @torch.no_grad()
    def decode(self, latents: Tensor | np.ndarray) -> np.ndarray:
        """Normalised latents ``[B, z, 1 + k, h, w]`` -> uint8 ``[B, 1 + 4k, H, W, 3]``."""
        z = torch.as_tensor(latents, dtype=torch.float32, device=self.device)
        return to_uint8(self.module.decode(z * self._std + self._mean).sample.cpu().numpy())
