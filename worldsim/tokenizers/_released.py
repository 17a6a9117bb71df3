"""Weights that others released, and our own: every name and shape must fit, and what does not is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from worldsim.core import registry
from worldsim.core.config import build
from worldsim.core.errors import UserError
from worldsim.core.files import read_json
from worldsim.train.checkpoint import read_weights

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "model.safetensors")
LEVELS = {8: (8, 6, 5), 10: (8, 5, 5, 5), 12: (7, 5, 5, 5, 5), 14: (8, 8, 8, 6, 5), 16: (8, 8, 8, 5, 5, 5)}
"""log2 of the number of codes -> levels, as the released configs name them. # source: FSQ paper, table 1; RLVR-World"""
NEEDED = {
    "fsq-frame": ("block_out_channels", "fsq_levels"),
    "fsq-compressive": ("block_out_channels", "vq_fsq_levels", "dyn_fsq_levels"),
}
"""Keys without which a config is not that of a released tokenizer."""
ASPECT = (5, 4)
"""Width to height of the frames of every released model; the configs hold the height alone."""


@dataclass(frozen=True)
class KeyReport:
    """How the names of some weights compare with those of a module.

    Attributes:
        missing: the module needs them. unknown: it has no place for them. shapes: name -> (there, needed).
        matched: how many fit.
    """

    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    matched: int

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unknown or self.shapes)

    def __str__(self) -> str:
        parts = [f"{self.matched} weights fit"]
        for what, names in (("missing", self.missing), ("unknown", self.unknown)):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                parts.append(f"{len(names)} {what}: {', '.join(names[:3])}{more}")
        for name, (there, needed) in list(self.shapes.items())[:3]:
            parts.append(f"{name} has shape {list(there)} instead of {list(needed)}")
        return "; ".join(parts)


def compare(module: nn.Module, tensors: Mapping[str, Tensor]) -> KeyReport:
    """Which names and shapes of ``tensors`` fit the module's own."""
    wanted = module.state_dict()
    shapes = {
        name: (tuple(tensors[name].shape), tuple(wanted[name].shape))
        for name in sorted(wanted.keys() & tensors.keys())
        if tensors[name].shape != wanted[name].shape
    }
    return KeyReport(
        missing=tuple(sorted(wanted.keys() - tensors.keys())),
        unknown=tuple(sorted(tensors.keys() - wanted.keys())),
        shapes=shapes,
        matched=len(wanted.keys() & tensors.keys()) - len(shapes),
    )


def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> KeyReport:
    """Put weights into a module (which may be on ``meta``), all or none, as fp32.

    Raises:
        UserError: a name or a shape does not fit; the sentence names ``where`` and the first of each kind.
    """
    report = compare(module, tensors)
    if not report.fits:
        raise UserError(f"{where} does not fit this tokenizer: {report}")
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True, assign=True)
    return report


def is_released(folder: Path) -> bool:
    """Whether a folder holds a tokenizer as RLVR-World released them."""
    if not (folder / CONFIG).exists():
        return False
    about = read_json(folder / CONFIG)
    return isinstance(about, dict) and ("fsq_levels" in about or "dyn_fsq_levels" in about)


def load(folder: Path, device: str | torch.device = "cpu") -> Any:
    """A released tokenizer from its folder in diffusers' layout, with every weight in its place.

    Raises:
        UserError: the weights are not there, or do not fit what the config describes; the report names them.
    """
    about = read_json(folder / CONFIG)
    name = "fsq-compressive" if "dyn_fsq_levels" in about else "fsq-frame"
    plugin = registry.get("tokenizers", name)
    height, width = _size(about, folder)
    with torch.device("meta"):
        module = plugin(build(plugin.Net, _spec(about, name, folder)), height, width)
    path = next((folder / file for file in WEIGHTS if (folder / file).exists()), None)
    if path is None:
        raise UserError(f"{folder} has a {CONFIG} but no weights: none of {', '.join(WEIGHTS)}", ["ls", folder])
    report = fill(module, _read(path), str(path))
    module.imported = f"{path}: {report}, none is missing or unknown"
    module.about = {"imported_from": str(about.get("_class_name", "RLVR-World"))}
    return module.to(device).eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_weights(path)
    try:
        return torch.load(path, "cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError, LookupError, ValueError, OSError) as error:  # as torch meets garbage
        raise UserError(f"{path} holds no weights: {error}") from error


def _size(about: Mapping[str, Any], folder: Path) -> tuple[int, int]:
    height = int(about.get("resolution", 256))
    if height * ASPECT[0] % ASPECT[1]:
        raise UserError(f"{folder / CONFIG}: a resolution of {height} has no width of {ASPECT[0]}/{ASPECT[1]} of it")
    return height, height * ASPECT[0] // ASPECT[1]


def _spec(about: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """A released config in our words; what it can say and we cannot is refused.

    Raises:
        UserError: another activation, norm, or more than one context frame.
    """
    fixed = {"act_fn": "silu", "norm_type": "group", "context_length": 1}
    for key, only in fixed.items():
        if about.get(key, only) != only:
            raise UserError(f"{folder / CONFIG}: {key} = {about[key]!r} is not supported; only {only!r} is")
    lacks = next((key for key in NEEDED[name] if key not in about), None)
    if lacks is not None:
        raise UserError(f"{folder / CONFIG} lacks the key '{lacks}' of a released {name}")
    common = {
        "channels": about["block_out_channels"],
        "resnets": about.get("layers_per_block", 2),
        "groups": about.get("norm_num_groups", 32),
        "latent": about.get("latent_channels", 64),
    }
    if name == "fsq-frame":
        return {**common, "levels": _levels(about["fsq_levels"], folder)}
    levels, own = (_levels(about[key], folder) for key in ("vq_fsq_levels", "dyn_fsq_levels"))
    if levels != own:
        raise UserError(f"{folder / CONFIG}: context and dynamics codes differ ({levels} and {own})")
    return {**common, "levels": own, "patch": about.get("patch_size", 4), "below": about.get("max_att_resolution", 32)}


def _levels(value: Any, folder: Path) -> tuple[int, ...]:
    if isinstance(value, int) and value not in LEVELS:
        raise UserError(f"{folder / CONFIG}: there is no table of levels for 2^{value} codes; it knows {list(LEVELS)}")
    return LEVELS[value] if isinstance(value, int) else tuple(value)
