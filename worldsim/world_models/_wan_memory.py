"""How much memory training takes, on each device and in all, before anything is rented."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from worldsim.world_models._wan_geometries import Geometry
from worldsim.world_models._wan_net import NetSpec, WanNet

TEXT_ENCODER_BYTES = 11.4e9
"""UMT5-XXL in bf16: the largest of the encode phase, which has the device to itself."""
OVERHEAD_BYTES = 1.5e9
"""Context of the device and its libraries."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by use on one device, and parameters of the whole model.

    Attributes:
        host: main memory while the weights are loaded, all processes together.
    """

    parameters: int
    trained: int
    tokens: int
    weights: float
    optimizer: float
    activations: float
    encoders: float
    host: float

    @property
    def total(self) -> float:
        """The larger of the two phases."""
        return max(self.weights + self.optimizer + self.activations, self.encoders) + OVERHEAD_BYTES


def estimate(
    geometry: Geometry,
    spec: NetSpec,
    tokens: int,
    batch: int,
    checkpointing: bool,
    *,
    processes: int = 1,
    sharded: bool = False,
) -> Estimate:
    """What one process needs.

    Args:
        tokens: video tokens of one clip, the longest there is.
        batch: clips per forward pass and process.
        processes: that train together.
        sharded: FSDP2 over them. What lies outside the blocks is whole from a forward pass to the end of its backward
            pass, and two blocks are: one computes while the next one comes together.

    Counted from the real module without its weights. Activations of one block, in units of tokens x width: fp32 norms and
    residuals 12, queries, keys, values and attention 10, and six fp32 modulations where each latent has its own time; the
    feed-forward adds 6 of its own width. With checkpointing one block is live and the others keep their input.
    """
    with torch.device("meta"):
        net = WanNet(WanTransformer3DModel(**geometry.transformer), geometry, spec)
    trained = sum(p.numel() for p in net.trained().values())
    parameters = sum(p.numel() for p in net.parameters())
    width, layers = geometry.width, geometry.transformer["num_layers"]
    block = _block(geometry, net.per_latent, batch * tokens)
    live = block + (layers - 1) * batch * tokens * width * 2 if checkpointing else layers * block
    whole = _weights(net)
    moments = trained * (4.0 + 8.0 + 4.0)  # gradient, AdamW's moments, average
    weights = whole
    if sharded and processes > 1:
        one = _weights(net.transformer.blocks[0])
        weights = whole / processes + (whole - layers * one) + 2 * one
        moments /= processes
    elif processes > 1:
        moments += trained * 4.0  # DDP's buckets
    return Estimate(
        parameters=parameters,
        trained=trained,
        tokens=tokens,
        weights=weights,
        optimizer=moments,
        activations=float(live),
        encoders=0.0 if geometry.random else TEXT_ENCODER_BYTES,
        host=processes * whole,
    )


def _weights(module: nn.Module) -> float:
    """Bytes of its parameters in training: trained ones in fp32, frozen ones in bf16."""
    return float(sum(p.numel() * (4 if p.requires_grad else 2) for p in module.parameters()))


def _block(geometry: Geometry, per_latent: bool, tokens: int) -> float:
    """Bytes alive inside one transformer block."""
    modulation = 24 * geometry.width if per_latent else 0
    return tokens * (22 * 2 * geometry.width + 6 * 2 * geometry.transformer["ffn_dim"] + modulation)


def rollout_bytes(geometry: Geometry, spec: NetSpec, tokens: int, clips: int) -> float:
    """Imagining: weights and one live block. The codec has the device's activations to itself, before and after.

    Args:
        tokens: video tokens of one clip. clips: per forward pass.
    """
    whole = estimate(geometry, spec, tokens, clips, checkpointing=True)
    return whole.weights + _block(geometry, True, clips * tokens) + OVERHEAD_BYTES
