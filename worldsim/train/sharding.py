"""A module cut over the ranks (FSDP2), and its trained tensors whole again.

accelerate's FSDP2 plugin is ignored on CPUs, and it wants the optimiser before there are sharded parameters to give it. So
``fully_shard`` is called here: the same lines run on gloo, where the tests compare them with DDP, and on nccl.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as group
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def shard(module: Any, device: str) -> None:
    """Leave on this rank its slice of every parameter, in place; the blocks come together one at a time in a forward pass.

    Each slice goes to the device as it is cut, so no more than one block is ever there whole. Every rank must hold the same
    weights before. Parameters are new objects afterwards, of the same names.

    Args:
        module: has ``blocks()``, its repeated parts. Frozen parameters may have any dtype, trained ones of a block share one.
    """
    mesh = init_device_mesh(device, (group.get_world_size(),))
    for block in module.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def sync_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass averages gradients over ranks; for sharded models, others have ``no_sync``."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def local(tensor: Tensor) -> Tensor:
    """This rank's slice, sharing memory; a whole tensor is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank. All ranks must ask, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[Any, Any]) -> dict[Any, Any]:
    """A nested mapping with its sharded tensors whole, on the CPU of rank 0; elsewhere they are left out one by one."""
    out: dict[Any, Any] = {}
    for key, value in tensors.items():
        if isinstance(value, Mapping):
            out[key] = gather(value)
        elif isinstance(value, DTensor):
            full = value.full_tensor()
            if group.get_rank() == 0:
                out[key] = full.cpu()
        else:
            out[key] = value
    return out


@torch.no_grad()
def fill(target: Tensor, full: Tensor) -> None:
    """Write a whole tensor into one that may be sharded."""
    local(target).copy_(local(_like(full, target)))


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """``load_state_dict`` of whole moments over parameters that may be sharded."""
    parameters = [p for entries in optimizer.param_groups for p in entries["params"]]
    slices = {
        index: {k: _like(v, parameters[index]) if k != "step" else v for k, v in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": slices})


def _like(full: Tensor, target: Tensor) -> Tensor:
    """``full``, cut as ``target`` is. Every rank has the whole, so nothing is sent."""
    if not isinstance(target, DTensor):
        return full
    placed = full.to(target.to_local().device)
    return distribute_tensor(placed, target.device_mesh, target.placements, src_data_rank=None)
