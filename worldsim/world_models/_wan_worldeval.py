"""WorldEval's checkpoints as a :class:`Wan` with the route ``worldeval``: every trained tensor arrives, or one is named.

The reference's own loader loses the projector's LoRA, leaves its last layer random where no LoRA was put on it, ignores
``alpha / rank``, and takes 0.1 for a missing ``action_alpha``. Here a missing or unknown key is an error.
# source: Worldeval@4608426:wanvideo/train_wan_t2v_act_embed.py, diffsynth/models/lora.py, read for their key names
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from worldsim.core.errors import UserError, and_more
from worldsim.core.types import ActionSpec
from worldsim.data.transforms import Normalize
from worldsim.train import checkpoint
from worldsim.world_models import _worldeval_files as files
from worldsim.world_models._wan_card import Sampling, WanCard
from worldsim.world_models._wan_geometries import Base, resolve
from worldsim.world_models._wan_names import TARGETS, to_original
from worldsim.world_models._wan_net import LORA_TARGETS, NetSpec, WanNet
from worldsim.world_models._wan_routes.worldeval import WIDE
from worldsim.world_models._worldeval_files import Beside
from worldsim.world_models.wan import Wan, check_size

WHOLE = ("module", "state_dict")
"""Where DeepSpeed and Lightning keep a module's whole state; what lies beside it and is no tensor is their bookkeeping."""
PROJECTOR, ALPHA = "action_proj", "action_alpha"
LORA = re.compile(r"\.lora_([AB])\.default\.weight$")


def load(path: Path, device: str = "cpu") -> Wan:
    """A WorldEval checkpoint, flat file or DeepSpeed directory, with the settings written beside it.

    Raises:
        UserError: a tensor is missing, unknown or of another shape; the file holds more than tensors; nothing says how it
            was trained; or the base's weights are not on this machine.
    """
    card, tensors = read(path)
    return Wan.of(card, tensors, str(path), device)


def rollout_memory(path: Path, batch: int) -> float:
    """GiB of accelerator memory for rollouts of ``batch`` clips."""
    return Wan.memory_of(read(path)[0], batch)


def read(path: Path) -> tuple[WanCard, dict[str, Tensor]]:
    """The card and the trained tensors under this program's names, fp32; the base is not loaded.

    Raises:
        UserError: as :func:`load`, the base apart.
    """
    beside = files.beside(path)
    flat, source = trained_tensors(path), str(path)
    base = resolve(beside.base, beside.revision)
    spec = _spec(flat, beside, base, source)
    with torch.device("meta"):
        net = WanNet(WanTransformer3DModel(**base.geometry.transformer), base.geometry, spec)
    wanted = {_their_name(name): name for name in net.trained() if name.startswith("transformer.")}
    projector = _projector_keys(flat, spec.action_dim)
    _report({*wanted, *projector, ALPHA}, set(flat), source)
    tensors = {name: flat[theirs].float() for theirs, name in wanted.items()}
    tensors |= _projector(flat, projector, spec.alpha)
    tensors["conditioner.action_alpha"] = flat[ALPHA].float().reshape(())
    tensors["conditioner.null"] = torch.zeros(base.geometry.width)  # the reference has none: hidden actions add nothing
    return _card(beside, base, spec, source), tensors


def trained_tensors(path: Path) -> dict[str, Tensor]:
    """What was trained, under the reference's names, from either form.

    The tensors of a DeepSpeed file lie beside its bookkeeping; where they do not, they are taken from its module, whose
    frozen base is left there.
    """
    file = files.weights_file(path)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{file} is no torch file of tensors alone, and nothing else is unpickled ({first}); if you trust "
            "its author, write the tensors out",
            [
                "python",
                "-c",
                f"import torch; d = torch.load({str(file)!r}, weights_only=False); "
                f"torch.save({{k: v for k, v in d.items() if torch.is_tensor(v)}}, {str(path.with_suffix('.tensors.ckpt'))!r})",
            ],
        ) from error
    if not isinstance(found, Mapping):
        raise UserError(f"{file} holds a {type(found).__name__}, not tensors by name")
    flat = _choose(found)
    for name, value in flat.items():
        if not isinstance(value, Tensor) or not (value.numel() and value.is_floating_point()):
            what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UserError(f"{file}: {name} is no weight but {what}")
    checkpoint.require_finite(flat, str(file))
    return flat


def _choose(found: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a file that were trained, strictly all of them where they lie flat."""
    whole = next((found[key] for key in WHOLE if isinstance(found.get(key), Mapping)), None)
    if whole is None:
        prefix = _prefix(found)
        return _of_module(found, prefix) if prefix else dict(found)
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    return tensors or _of_module(whole, _prefix(whole))


def _prefix(whole: Mapping[str, Any]) -> str:
    """What stands before the transformer's own names, ``pipe.dit.`` for one; empty where they stand alone."""
    marks = (re.match(r"(.*?)(blocks\.\d+\.(self|cross)_attn\.|action_proj\.\d|action_alpha$)", name) for name in whole)
    return next((mark[1] for mark in marks if mark), "")


def _of_module(whole: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The trained part of a whole module: the transformer's own names, without the frozen base where there is a LoRA."""
    named = {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}
    if not any(LORA.search(name) for name in named):
        return named
    return {name: value for name, value in named.items() if LORA.search(name) or name.startswith((PROJECTOR, ALPHA))}


def _their_name(name: str) -> str:
    """``transformer.blocks.0.attn1.to_q.lora_A.weight`` -> ``blocks.0.self_attn.q.lora_A.default.weight``."""
    return re.sub(r"\.lora_([AB])\.weight$", r".lora_\1.default.weight", to_original(name.removeprefix("transformer.")))


def _spec(flat: dict[str, Tensor], beside: Beside, base: Base, source: str) -> NetSpec:
    """The net's shape, from the tensors' own shapes."""
    first = next((flat[key] for key in (f"{PROJECTOR}.0.base_layer.weight", f"{PROJECTOR}.0.weight") if key in flat), None)
    if first is None or first.ndim != 2:
        wrapped = any(name.startswith((f"{PROJECTOR}.0.base_layer", f"{PROJECTOR}.0.lora_")) for name in flat)
        raise UserError(f"{source} lacks {PROJECTOR}.0.{'base_layer.' if wrapped else ''}weight")
    ranks = [
        int(flat[name].shape[0])
        for name in sorted(flat)
        if name.startswith("blocks.") and name.endswith("A.default.weight")
    ]
    if not ranks and "blocks.0.self_attn.q.weight" not in flat:
        raise UserError(f"{source} lacks blocks.0.self_attn.q.lora_A.default.weight: it holds no LoRA and no transformer")
    rank = ranks[0] if ranks else 0
    unknown = [name for name in beside.lora_targets if name not in TARGETS]
    if unknown:
        raise UserError(f"lora_targets of {source}: '{unknown[0]}' is none of {', '.join(TARGETS)}")
    targets = {TARGETS[name] for name in beside.lora_targets}
    return NetSpec(
        action_dim=int(first.shape[1]),
        rows_per_frame=1,
        route="worldeval",
        hidden=int(first.shape[0]),
        rank=rank,
        alpha=float(rank if beside.lora_alpha is None else beside.lora_alpha),
        targets=LORA_TARGETS if targets == set(LORA_TARGETS) else tuple(sorted(targets)),
    )


def _projector_keys(flat: dict[str, Tensor], action_dim: int) -> list[str]:
    """The keys that the projector must have: each layer plain, or wrapped with a LoRA of its own."""
    out = []
    for layer in (0, 2) if action_dim >= WIDE else (0, 2, 4):
        stem = f"{PROJECTOR}.{layer}"
        if any(name.startswith((f"{stem}.base_layer.", f"{stem}.lora_")) for name in flat):
            out += [f"{stem}.base_layer.weight", f"{stem}.base_layer.bias"]
            out += [f"{stem}.lora_A.default.weight", f"{stem}.lora_B.default.weight"]
        else:
            out += [f"{stem}.weight", f"{stem}.bias"]
    return out


def _report(wanted: set[str], found: set[str], source: str) -> None:
    """Every key must be there and none may be left over."""
    for wrong, kind in ((wanted - found, "lacks"), (found - wanted, "has an unknown key")):
        if wrong:
            hint = "; a LoRA on other layers is declared as lora_targets beside the checkpoint" if _of_lora(wrong) else ""
            raise UserError(f"{source} {kind} {min(wrong)}{and_more(wrong)}{hint}")


def _of_lora(names: set[str]) -> bool:
    return any(LORA.search(name) and name.startswith("blocks.") for name in names)


def _projector(flat: dict[str, Tensor], keys: list[str], alpha: float) -> dict[str, Tensor]:
    """``conditioner.action_proj.*`` with each layer's LoRA folded in: W + (alpha / rank) B A, in fp64."""
    out = {}
    for key in keys:
        if ".lora_" in key:
            continue
        value, stem = flat[key].double(), key.split(".base_layer.")[0]
        if key.endswith(".base_layer.weight"):
            a, b = (flat[f"{stem}.lora_{part}.default.weight"].double() for part in "AB")
            value = value + alpha / len(a) * b @ a
        out[f"conditioner.{key.replace('.base_layer', '')}"] = value.float()
    return out


def _card(beside: Beside, base: Base, spec: NetSpec, source: str) -> WanCard:
    height, width = beside.height_width
    check_size(base, height, width, beside.frames)
    dim, scaling, names = spec.action_dim, beside.normalise, beside.action_names
    if names is not None and len(names) != dim:
        raise UserError(f"action_names beside {source}: {len(names)} names for {dim} numbers per row")
    if scaling is not None and not len(scaling.shift) == len(scaling.scale) == dim:
        raise UserError(f"normalise beside {source}: shift and scale must have {dim} numbers each")
    shift = np.zeros(dim) if scaling is None else np.array(scaling.shift, float)
    scale = np.ones(dim) if scaling is None else np.array(scaling.scale, float)
    return WanCard(
        base=base.to_json(),
        net=spec,
        height=height,
        width=width,
        fps=beside.fps,
        frames=beside.frames,
        histories=(1,),
        camera=beside.camera,
        action_column=beside.actions,
        action_spec=ActionSpec.unknown(dim, beside.fps, names),
        action_delay=beside.action_delay,
        normalize=Normalize(shift, scale, None, "identity" if scaling is None else "mean-std"),
        sampling=Sampling(beside.steps, beside.guidance, beside.shift),
        prompts={},
    )
