"""Memory estimates: what FSDP2 takes off each process, and what it leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel

from worldsim.world_models._wan_geometries import GEOMETRIES
from worldsim.world_models._wan_memory import Estimate, estimate
from worldsim.world_models._wan_net import NetSpec, WanNet

REAL = GEOMETRIES["wan2.1-t2v-1.3b"]
SHORT = replace(REAL, transformer={**REAL.transformer, "num_layers": 4})
SPEC = NetSpec(action_dim=14, rows_per_frame=1, route="patch-add", hidden=1536, rank=32, alpha=32.0)
TOKENS = 21 * 30 * 52


def needed(processes: int = 1, sharded: bool = False) -> Estimate:
    return estimate(SHORT, SPEC, TOKENS, 1, True, processes=processes, sharded=sharded)


def test_sharding_divides_what_is_trained_and_all_but_two_blocks() -> None:
    alone, eight = needed(), needed(8, sharded=True)
    with torch.device("meta"):
        net = WanNet(WanTransformer3DModel(**SHORT.transformer), SHORT, SPEC)
    held = {name: p.numel() * (4 if p.requires_grad else 2) for name, p in net.named_parameters()}
    block = sum(size for name, size in held.items() if name.startswith("transformer.blocks.3."))
    outside = sum(size for name, size in held.items() if not name.startswith("transformer.blocks."))
    assert alone.weights == sum(held.values())
    assert eight.weights == pytest.approx(alone.weights / 8 + outside + 2 * block)
    assert eight.optimizer == pytest.approx(alone.optimizer / 8)
    assert eight.activations == alone.activations
    assert eight.host == 8 * alone.weights


def test_ddp_keeps_everything_and_adds_its_buckets() -> None:
    alone, two = needed(), needed(2)
    assert two.weights == alone.weights
    assert two.optimizer == alone.optimizer + 4 * alone.trained
    assert needed(1, sharded=True) == alone
