"""What one rank does in the tests of several processes: ``python -m tests.train_ranks FOLDER``, under torchrun's variables.

Every arm trains to its own folder; the parent compares what they left.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from worldsim.core.config import build
from worldsim.core.runs import RunContext
from worldsim.nn.flow import TimeSampling
from worldsim.train import checkpoint, distributed
from worldsim.train.loop import fit
from worldsim.train.order import Order
from worldsim.train.settings import Training
from worldsim.world_models._wan_geometries import resolve
from worldsim.world_models._wan_net import NetSpec, WanNet
from worldsim.world_models._wan_training import FlowLoss

CLIPS = 12


class Still(nn.Module):
    """A regression without noise: only there can two processes equal one with twice the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(6, 9), nn.SiLU(), nn.Linear(9, 6))

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.net.named_parameters())

    def blocks(self) -> list[nn.Module]:
        return [self.net[0]]

    def groups(self, settings: Training) -> list[dict]:
        return [{"params": list(self.net.parameters()), "lr": settings.lr}]

    def forward(self, x: Tensor) -> Tensor:
        return ((self.net(x) - x.flip(1)) ** 2).mean()


def tiny(dtype: torch.dtype = torch.float32, rank: int = 4, checkpointing: bool = False) -> FlowLoss:
    """The twin with a LoRA on a base in ``dtype``; rank 0 trains every weight."""
    base = resolve("tiny-ti2v")
    net = WanNet(base.transformer(dtype), base.geometry, NetSpec(3, 1, "adaln", 16, rank, float(rank)), seed=5)
    if checkpointing:
        net.transformer.enable_gradient_checkpointing()
    return FlowLoss(net, (1, 2), TimeSampling("logit-normal", 3.0))


def clips() -> dict[str, Tensor]:
    """CLIPS clips of 9 frames."""
    geometry, generator = resolve("tiny-ti2v").geometry, torch.Generator().manual_seed(2)

    def noise(*shape: int) -> Tensor:
        return torch.randn(CLIPS, *shape, generator=generator)

    return {"latents": noise(geometry.channels, 3, 4, 4), "actions": noise(8, 1, 3), "text": noise(8, 32)}


def settings(**changes: object) -> Training:
    wanted = {
        "steps": 6,
        "batch": 2,
        "lr": 0.01,
        "warmup": 2,
        "clip": 0.0,
        "ema": 0.9,
        "checkpoint_every": 4,
        "log_every": 1,
    }
    return build(Training, {**wanted, **changes})


def train(out: Path, module: nn.Module, data: dict[str, Tensor], chosen: Training, stop: int | None = None) -> None:
    """Train in ``out`` on this rank; ``stop`` breaks it off when that step's batch is fetched."""
    me = distributed.ranks()
    context = RunContext("train", out, rank=me.rank, world_size=me.world_size)
    order = Order(CLIPS, 0, chosen.batch, chosen.accumulate, me.rank, me.world_size)

    def fetch(step: int, micro: int) -> dict[str, Tensor]:
        if step == stop:
            raise RuntimeError("killed")
        at = torch.from_numpy(order.indices(step, micro))
        return {name: tensor[at] for name, tensor in data.items()}

    def save(tensors: dict[str, Tensor], step: int) -> None:
        checkpoint.write_checkpoint(out / "checkpoint", tensors, {}, step)

    fit(module, fetch, chosen, context, save)


def arms(folder: Path) -> None:
    """Every arm that two ranks train, in one process group."""
    still = {"x": torch.randn(CLIPS, 6, generator=torch.Generator().manual_seed(0))}
    for sharding in ("none", "fsdp2"):
        cut = {"sharding": sharding}
        train(folder / f"{sharding}-lora", tiny(), clips(), settings(**cut))
        train(folder / f"{sharding}-clipped", tiny(), clips(), settings(**cut, clip=0.1, lr=1e-3))
        whole = settings(**cut, clip=0.1, lr=1e-3, ema=0.0, steps=3)
        train(folder / f"{sharding}-all", tiny(rank=0, checkpointing=True), clips(), whole)
        train(folder / f"{sharding}-bf16", tiny(torch.bfloat16, checkpointing=True), clips(), settings(**cut, steps=3))
        train(folder / f"{sharding}-twice", tiny(), clips(), settings(**cut, accumulate=2, steps=3))
        train(folder / f"{sharding}-still", Still(), still, settings(**cut))
    half = folder / "fsdp2-killed"
    with pytest.raises(RuntimeError, match="killed"):
        train(half, tiny(), clips(), settings(sharding="fsdp2"), stop=5)
    train(half, tiny(), clips(), settings(sharding="fsdp2"))


if __name__ == "__main__":
    distributed.start("cpu")
    arms(Path(sys.argv[1]))
    distributed.barrier()
    distributed.stop()
