"""Where a WorldEval checkpoint lies and what a person has written beside it.

Two forms: a flat torch file, and the directory that Lightning's DeepSpeed strategy leaves under the same name
(``<name>.ckpt/checkpoint/mp_rank_00_model_states.pt``). Neither says at which size, rate or camera it was trained, so that
comes from ``<name>.yaml`` (or ``.json``) beside it. Imports no torch: it also answers "is this one at all?".
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from worldsim.core.config import build, config
from worldsim.core.errors import UserError, again
from worldsim.core.files import read_json

FILES = (".ckpt", ".pt", ".pth", ".bin")
PARTITIONED = "zero_pp_rank_*_model_states.pt"
TEMPLATE = {"fps": "15", "size": "480x832", "camera": "cam_high", "actions": "act"}
"""What must be written beside a checkpoint, with values to put one's own over."""


@config
class Scaling:
    """Actions were given to the model as ``(x - shift) / scale``, one number per dimension."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]


@config
class Beside:
    """What a WorldEval checkpoint does not hold.

    Attributes:
        fps: frames per second of the training clips. size: ``HxW`` of them. camera: what they showed.
        actions: the column of action latents, as ``plugin`` or ``plugin@fingerprint``, or ``raw``.
        base: the Wan it was trained on, by name or folder. revision: of its weights.
        action_names: of the dimensions, where actions are ``raw``.
        frames: per clip. action_delay: rows between a command and its effect.
        normalise: what was done to the latents; null is nothing, as in the reference.
        lora_alpha: the LoRA is scaled by ``lora_alpha / rank``; null is the rank, as in the reference's scripts.
        lora_targets: layers with a LoRA, in the original's names.
        steps, guidance, shift: how rollouts are sampled; ``guidance`` 1 is off.
    """

    fps: float
    size: str
    camera: str
    actions: str
    base: str = "wan2.1-i2v-14b-480p"
    revision: str | None = None
    action_names: tuple[str, ...] | None = None
    frames: int = 81
    action_delay: int = 0
    normalise: Scaling | None = None
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] = ("q", "k", "v", "o", "ffn.0", "ffn.2")
    steps: int = 50
    guidance: float = 1.0
    shift: float = 5.0

    def __post_init__(self) -> None:
        sides = self.size.lower().split("x")
        if len(sides) != 2 or not all(side.isdigit() for side in sides):
            raise ValueError(f"size '{self.size}' is not of the form HxW")
        if self.fps <= 0:
            raise ValueError(f"fps must be positive, but is {self.fps}")
        if self.action_delay < 0:
            raise ValueError(f"action_delay must not be negative, but is {self.action_delay}")

    @property
    def height_width(self) -> tuple[int, int]:
        height, width = self.size.lower().split("x")
        return int(height), int(width)


def find(path: Path) -> Path | None:
    """The checkpoint that ``path`` names: itself, or the only ``.ckpt`` in a folder; None when it is something else."""
    if path.is_file():
        return path if path.suffix in FILES else None
    if not path.is_dir():
        return None
    if _states(path) or _partitioned(path):
        return path
    inside = sorted(path.glob("*.ckpt"))
    if len(inside) > 1:
        names = ", ".join(one.name for one in inside[:5])
        raise UserError(f"{path} holds several checkpoints: {names}", again(model=inside[-1]))
    return inside[0] if inside else None


def weights_file(path: Path) -> Path:
    """The file with the tensors of a checkpoint that :func:`find` found.

    Raises:
        UserError: they are spread over several files.
    """
    if path.is_file():
        return path
    states = _states(path)
    if len(states) > 1 or not states:
        kind = "model-parallel ranks" if states else "ZeRO-3 ranks"
        script = path / "zero_to_fp32.py"
        raise UserError(
            f"{path} holds weights cut into pieces, one per {kind[:-1]}; DeepSpeed joins them into one file",
            ["python", script, path, path.with_suffix(".pt")],
        )
    return states[0]


def _folders(path: Path) -> list[Path]:
    """Where DeepSpeed's files may lie: under the tag that ``latest`` names, ``checkpoint/``, or in the folder itself."""
    latest = path / "latest"
    tags = [latest.read_text(encoding="utf8").strip()] if latest.is_file() else []
    return [folder for folder in (*(path / tag for tag in tags), path / "checkpoint", path) if folder.is_dir()]


def _states(path: Path) -> list[Path]:
    for folder in _folders(path):
        found = sorted(folder.glob("mp_rank_*_model_states.pt"))
        if found:
            return found
    return []


def _partitioned(path: Path) -> bool:
    return any(next(folder.glob(PARTITIONED), None) is not None for folder in _folders(path))


def note_of(path: Path) -> Path | None:
    """The file beside a checkpoint that says how it was trained; None where there is none."""
    notes = (path.with_suffix(suffix) for suffix in (".yaml", ".yml", ".json"))
    return next((note for note in notes if note.is_file()), None)


def beside(path: Path) -> Beside:
    """``<name>.yaml``, ``.yml`` or ``.json`` beside a checkpoint.

    Raises:
        UserError: there is none, or a key is missing, unknown or wrong; says which and where.
    """
    found = note_of(path)
    if found is not None:
        return _read(found)
    note = path.with_suffix(".yaml")
    raise UserError(
        f"{path} does not say how it was trained; write fps, size, camera and actions (and base, if it is not "
        f"{Beside.__dataclass_fields__['base'].default}) into {note}",
        f"printf {_lines(TEMPLATE)} > {shlex.quote(str(note))}",
    )


def _lines(keys: Iterable[str]) -> str:
    """Lines of the template, quoted, as ``printf`` takes them."""
    return shlex.quote("".join(f"{key}: {TEMPLATE[key]}\\n" for key in keys))


def _read(note: Path) -> Beside:
    values: Any = read_json(note) if note.suffix == ".json" else _yaml(note)
    if not isinstance(values, dict):
        raise UserError(f"{note} must be a mapping of keys to values", f"cat {shlex.quote(str(note))}")
    lacking = [key for key in TEMPLATE if key not in values]
    if lacking:
        raise UserError(*_lacks(note, lacking, [str(key) for key in values]))
    try:
        return build(Beside, values)
    except UserError as error:
        raise UserError(f"{note}: {error.sentence}", error.command) from error


def _lacks(note: Path, lacking: list[str], given: list[str]) -> tuple[str, str]:
    """What an existing file lacks, and a command that adds it: what a person has written there is never lost.

    A mistyped key is renamed (the file as it was stays as ``….bak``); what is wholly absent is appended.
    """
    sentence, file = f"{note} lacks {' and '.join(lacking)}", shlex.quote(str(note))
    unknown = [key for key in given if key not in Beside.__dataclass_fields__]
    near = next(((u, n[0]) for u in unknown if (n := difflib.get_close_matches(u, lacking, n=1, cutoff=0.6))), None)
    if near is not None:
        sentence += f"; it has an unknown key '{near[0]}'; did you mean '{near[1]}'?"
        was, now = (f'"{key}"' if note.suffix == ".json" else f"{key}:" for key in near)
        change = shlex.quote(f"s/{was}/{now}/")
        return sentence, f"sed -i.bak {change} {file}"
    if unknown:
        sentence += f"; it has an unknown key '{unknown[0]}'"
    return sentence, f"cat {file}" if note.suffix == ".json" else f"printf '\\n'{_lines(lacking)} >> {file}"


def _yaml(note: Path) -> Any:
    try:
        return yaml.safe_load(note.read_text(encoding="utf8"))
    except yaml.YAMLError as error:
        raise UserError(f"{note} is not valid YAML: {error}") from error
