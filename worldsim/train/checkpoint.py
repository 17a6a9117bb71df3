"""What training leaves on disk: ``checkpoint/`` for others, ``state/`` for its own resume. Whole or not at all.

The bytes of ``checkpoint/model.safetensors`` follow from the tensors alone: a killed and resumed run ends in the same file.
"""

from __future__ import annotations

import json
import os
import shlex
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from worldsim.core.errors import UserError
from worldsim.core.files import read_json, remove, replacing, write_json

WEIGHTS = "model.safetensors"
CARD = "card.json"
STATE_PREFIX = "step_"


def write_weights(path: Path, tensors: dict[str, Tensor], about: dict[str, Any] | None = None) -> None:
    """One safetensors file, atomically.

    safetensors keeps its metadata in a hash map, whose order changes from run to run; one entry has one order.
    """
    whole = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    metadata = {"worldsim": json.dumps(about, sort_keys=True)} if about else None
    with replacing(path) as temporary:
        temporary.write_bytes(save(whole, metadata=metadata))


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        UserError: missing or damaged, or a number in it is not finite; names the file.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged, cut off or no safetensors file: {error}", ["ls", "-l", path]) from error
    require_finite(tensors, str(path))
    return tensors


def require_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """
    Raises:
        UserError: a weight is NaN or infinite, which would give frames of garbage; names ``source`` and the tensor.
    """
    for name, tensor in tensors.items():
        wrong = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if wrong:
            raise UserError(
                f"{source}: {wrong} of {tensor.numel()} numbers of {name} are not finite; the file is damaged (compare it "
                "with where it came from) or its training diverged",
                f"sha256sum {shlex.quote(source)}",
            )


def read_about(path: Path) -> dict[str, Any]:
    """The metadata that :func:`write_weights` wrote; reads the header only."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return json.loads(header.get("__metadata__", {}).get("worldsim", "{}"))


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], card: dict[str, Any], step: int) -> None:
    """``card.json`` and ``model.safetensors``. The card does not change during a run, so any mix of two saves is whole."""
    write_json(folder / CARD, card)
    write_weights(folder / WEIGHTS, tensors, {"step": step})


def write_state(folder: Path, step: int, parts: dict[str, Any], about: dict[str, Any]) -> None:
    """``state/step_<n>/``: each part by ``torch.save``; then older ones go."""
    final = folder / f"{STATE_PREFIX}{step:09d}"
    if final.exists():
        return
    with replacing(final) as temporary:
        temporary.mkdir(parents=True)
        for name, value in parts.items():
            torch.save(value, temporary / f"{name}.pt")
        write_json(temporary / "about.json", {"step": step, **about})
        _flush(temporary)
    for old in folder.glob(f"{STATE_PREFIX}*"):
        if old != final:
            remove(old)


def latest_state(folder: Path) -> Path | None:
    """The newest whole state of a run; None when there is nothing to resume."""
    found = sorted(p for p in folder.glob(f"{STATE_PREFIX}*") if (p / "about.json").exists())
    return found[-1] if found else None


def read_state(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(about, parts) of one state folder, tensors on the CPU."""
    parts = {name: torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True) for name in names}
    return read_json(folder / "about.json"), parts


def _flush(folder: Path) -> None:
    """Force the files to disk before the rename makes them the newest state."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
