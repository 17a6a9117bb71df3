"""WorldEval checkpoints as its trainer writes them, from its documented key names, at tiny geometry with random weights."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

WIDTH, FFN, LAYERS = 24, 32, 2
"""Of the base ``tiny-i2v``."""
LAYERS_OF_A_BLOCK = {
    **{f"{attention}.{part}": (WIDTH, WIDTH) for attention in ("self_attn", "cross_attn") for part in "qkvo"},
    "ffn.0": (FFN, WIDTH),
    "ffn.2": (WIDTH, FFN),
}
BOOKKEEPING = {  # what DeepSpeed 0.15 puts beside the client's state
    "buffer_names": [],
    "optimizer": None,
    "param_shapes": [OrderedDict(x=torch.Size([2, 3]))],
    "frozen_param_shapes": None,
    "shared_params": {},
    "frozen_param_fragments": None,
    "lr_scheduler": None,
    "data_sampler": None,
    "random_ltd": None,
    "sparse_tensor_module_names": set(),
    "skipped_steps": 0,
    "global_steps": 40,
    "global_samples": 160,
    "dp_world_size": 4,
    "mp_world_size": 1,
    "ds_config": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}},
    "ds_version": "0.15.4",
}


def lora(stem: str, shape: tuple[int, int], rank: int) -> dict[str, Tensor]:
    out, into = shape
    return {
        f"{stem}.lora_A.default.weight": 0.3 * torch.randn(rank, into),
        f"{stem}.lora_B.default.weight": 0.3 * torch.randn(out, rank),
    }


def trained(action_dim: int, rank: int = 4, hidden: int = 40, wrapped: tuple[int, ...] = (0, 2), seed: int = 0):
    """The flat dictionary: LoRA of every block, the projector (layers in ``wrapped`` with a LoRA of their own), alpha."""
    torch.manual_seed(seed)
    flat: dict[str, Tensor] = {}
    for block in range(LAYERS):
        for part, shape in LAYERS_OF_A_BLOCK.items():
            flat |= lora(f"blocks.{block}.{part}", shape, rank)
    sizes = [action_dim, hidden, WIDTH] if action_dim >= 500 else [action_dim, hidden, WIDTH, WIDTH]
    for number, (into, out) in enumerate(pairwise(sizes)):
        stem = f"action_proj.{2 * number}"
        base = f"{stem}.base_layer" if 2 * number in wrapped else stem
        flat |= {f"{base}.weight": torch.randn(out, into) / into**0.5, f"{base}.bias": 0.1 * torch.randn(out)}
        if 2 * number in wrapped:
            flat |= lora(stem, (out, into), rank)
    return flat | {"action_alpha": torch.tensor(0.37)}


def write_flat(path: Path, flat: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(flat, path)
    return path


def write_deepspeed(path: Path, flat: dict[str, Tensor], beside: bool = True) -> Path:
    """Lightning's directory. ``beside``: the trained tensors also lie at the top of the file, as the reference leaves them."""
    frozen = {"pipe.dit.blocks.0.self_attn.q.base_layer.weight": torch.randn(WIDTH, WIDTH, dtype=torch.bfloat16)}
    module = OrderedDict({**frozen, **{f"pipe.dit.{name}": value for name, value in flat.items()}})
    (path / "checkpoint").mkdir(parents=True)
    torch.save(
        {"module": module, **BOOKKEEPING, **(flat if beside else {})}, path / "checkpoint" / "mp_rank_00_model_states.pt"
    )
    torch.save({"optimizer_state_dict": {}}, path / "checkpoint" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (path / "latest").write_text("checkpoint")
    (path / "zero_to_fp32.py").write_text("")
    return path


def write_beside(path: Path, **changes: object) -> Path:
    """The settings beside a checkpoint, for the painted dataset of the tests."""
    import yaml

    values = {
        "fps": 10,
        "size": "32x64",
        "camera": "cam_front",
        "actions": "raw",
        "base": "tiny-i2v",
        "frames": 9,
        "steps": 2,
    }
    note = path.with_suffix(".yaml")
    note.write_text(yaml.safe_dump({**values, **changes}))
    return note
