"""What the fine-tuning benchmark trains: random weights of any Wan's real geometry, painted clips, and counted FLOPs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from tests import painted
from worldsim.core import registry
from worldsim.core.errors import UserError
from worldsim.encoders.umt5 import UMT5
from worldsim.encoders.wan_vae import WanVAE
from worldsim.world_models._wan_geometries import GEOMETRIES, Base, Geometry

# source: config.json of google/umt5-xxl, and of the vae folders of Wan-AI/Wan2.1-*-Diffusers and Wan2.2-TI2V-5B-Diffusers
UMT5_XXL = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
VAE_21 = {"base_dim": 96, "z_dim": 16}
VAE_22 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 operations per second, from NVIDIA's data sheets."""


@dataclass(frozen=True)
class RandomBase(Base):
    """A base whose parts are drawn at random where they will live, so that no gigabyte is drawn on a CPU for a GPU."""

    device: str = "cpu"

    def transformer(self, dtype: torch.dtype = torch.float32) -> WanTransformer3DModel:
        with torch.device(self.device):
            return super().transformer(dtype)

    def vae(self, device: str) -> WanVAE:
        with torch.device(device):
            return super().vae(device)

    def text_encoder(self, device: str) -> UMT5:
        with torch.device(device):
            encoder = super().text_encoder(device)
        if device != "cpu":
            encoder.module.to(torch.bfloat16)
        return encoder


def random_base(model: str, device: str) -> RandomBase:
    """Any named Wan, weights or not.

    Raises:
        UserError: an unknown name, or an image-to-video model, which the plain arm does not have.
    """
    if model not in GEOMETRIES:
        raise UserError(f"--model {model} is none of {', '.join(GEOMETRIES)}")
    geometry = GEOMETRIES[model]
    if geometry.family == "i2v":
        raise UserError(f"--model {model}: the plain step is written for t2v and ti2v", "--model wan2.1-t2v-1.3b")
    if not geometry.random:
        vae = VAE_22 if geometry.family == "ti2v" else VAE_21
        geometry = replace(geometry, hub=None, vae=vae, text=UMT5_XXL)
    return RandomBase(geometry, model, None, device)


def make_data(folder: Path, episodes: int, frames: int, size: tuple[int, int]) -> Path:
    """Painted episodes as plain HDF5, one camera, nothing compressed: reading costs the plain arm as little as can be."""
    source = painted.PaintedSource(episodes, frames, size=size, cameras=("cam_front",), states=True)
    writer = registry.get("formats", "act-hdf5").create(folder, source.card)
    for index in range(len(source)):
        writer.commit(writer.stage(source.episode(index)))
    writer.finalize(source.card)
    return folder


def forward_flops(geometry: Geometry, tokens: int) -> tuple[float, float]:
    """Operations of one clip's forward pass: (in matrix products with weights, in attention); 2 per multiply-add."""
    settings, width = geometry.transformer, geometry.width
    text, ffn, patch = geometry.text_tokens, settings["ffn_dim"], 4
    per_token = 6 * width**2 + 2 * width * ffn  # self: q k v o; cross: q o; feed-forward
    linear = settings["num_layers"] * (tokens * per_token + text * 2 * width**2)
    linear += tokens * width * patch * (settings["in_channels"] + settings["out_channels"])
    linear += text * (settings["text_dim"] * width + width**2)
    attention = settings["num_layers"] * 2 * tokens * width * (tokens + text)
    return 2.0 * linear, 2.0 * attention


def train_flops(geometry: Geometry, tokens: int) -> float:
    """Operations that one clip's LoRA step needs: forward, and backward to activations alone in frozen layers (1 more for
    weights, 2 for attention). Recomputing activations is no work done."""
    linear, attention = forward_flops(geometry, tokens)
    return 2.0 * linear + 3.0 * attention


def peak_rate(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """The device's operations per second: by data sheet where known, and of the best of a few large matrix products here."""
    import time

    side = 8192 if device == "cuda" else 1024
    a, best = torch.randn(side, side, device=device, dtype=dtype), 0.0
    for _ in range(8):
        began = time.perf_counter()
        (a @ a).sum().item()
        best = max(best, 2.0 * side**3 / (time.perf_counter() - began))
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return {"name": name, "sheet": next((rate for key, rate in PEAKS.items() if key in name), None), "matmul": best}
