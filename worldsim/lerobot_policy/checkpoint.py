"""A LeRobot policy as a folder: what it says of itself before anything is built. Reads JSON and a header, no weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from worldsim.core.errors import UserError, again
from worldsim.core.files import file_digest, read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PIPELINES = ("policy_preprocessor.json", "policy_postprocessor.json")
NESTED = ("pretrained_model", "checkpoints/last/pretrained_model", "checkpoints/*/pretrained_model")
"""Where lerobot-train leaves the policy inside its own output folders, best first; of several the highest step."""
OLD_NORMALISATION = ("normalize_inputs.", "unnormalize_outputs.", "normalize_targets.")
"""Prefixes of the buffers in which LeRobot before 0.4 kept a policy's normalisation.

source: lerobot 0.6.1, processor/migrate_policy_normalization.py
"""
CAMERA_PREFIXES = ("observation.images.", "observation.")
STATE = "observation.state"


@dataclass(frozen=True)
class Checkpoint:
    """A saved policy.

    Attributes:
        folder: where it lies; None for a twin that was never saved.
        config: the policy's ``config.json``.
        width: D, numbers that enter the action head per action.
        digest: 12 hex digits of the weights, the config and the pipelines.
        rename: an observation's name as the pipeline receives it -> the policy's own name.
    """

    folder: Path | None
    config: Mapping[str, Any]
    width: int
    digest: str
    rename: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.folder) if self.folder else "the twin"

    def images(self) -> list[str]:
        """The policy's image features in its own order; those it fills itself when absent do not count."""
        return [
            key
            for key, feature in self.config["input_features"].items()
            if feature["type"] == "VISUAL" and "empty_camera" not in key
        ]

    def shape(self, feature: str) -> tuple[int, ...]:
        return tuple(self.config["input_features"][feature]["shape"])

    def state_dim(self) -> int | None:
        """Numbers in the state that the policy reads; None when it reads none."""
        return self.shape(STATE)[0] if STATE in self.config["input_features"] else None

    def unreadable(self) -> list[str]:
        """Input features that no dataset of frames and states has."""
        return [
            key for key, feature in self.config["input_features"].items() if feature["type"] != "VISUAL" and key != STATE
        ]

    def received_as(self, feature: str) -> str:
        """The name under which the pipeline receives what the policy calls ``feature``."""
        return next((before for before, after in self.rename.items() if after == feature), feature)


def camera_name(feature: str) -> str:
    """``observation.images.top`` -> ``top``; ``observation.image`` -> ``image``."""
    return next((feature.removeprefix(prefix) for prefix in CAMERA_PREFIXES if feature.startswith(prefix)), feature)


def find(policy: str) -> Path:
    """The folder that holds ``config.json``: the named one, or the policy inside an output folder of lerobot-train.

    Raises:
        UserError: there is none.
    """
    root = Path(policy)
    for folder in (root, *(path for inner in NESTED for path in sorted(root.glob(inner), reverse=True))):
        if (folder / CONFIG).is_file():
            return folder
    what = f"holds no {CONFIG}" if root.is_dir() else "is no folder"
    command = (
        ["hf", "download", "--local-dir", "policy", policy] if policy.count("/") == 1 and policy[0].isalnum() else None
    )
    raise UserError(f"the policy {policy} {what}", command or ["ls", root if root.is_dir() else root.parent])


def read(policy: str, kind: str | None = None, head: str | None = None, *, pipelines: bool = True) -> Checkpoint:
    """
    Args:
        kind: the policy type that is wanted, such as ``act``; any when None.
        head: name of its action head inside the policy, which ``width`` is read from; 0 without one.
        pipelines: whether the policy's own pre- and post-processors must be there, and normalisation in them.

    Raises:
        UserError: another type, a missing file, or weights from before LeRobot 0.4.
    """
    folder = find(policy)
    config = read_json(folder / CONFIG)
    _require_kind(folder, config, kind)
    shapes = _shapes(folder)
    if pipelines:
        _require_pipelines(folder, shapes)
    width = _width(folder, shapes, head, kind) if head else 0
    rename = _rename(folder) if (folder / PIPELINES[0]).is_file() else {}
    return Checkpoint(folder, config, width, _digest(folder), rename)


def _width(folder: Path, shapes: Mapping[str, tuple[int, ...]], head: str, kind: str | None) -> int:
    # openpi's own files leave the outermost name out
    weight = next((k for k in (f"{head}.weight", f"{head.partition('.')[2]}.weight") if k in shapes), None)
    if weight is None:
        raise UserError(f"{folder / WEIGHTS} has no tensor {head}.weight: these are not the weights of a policy '{kind}'")
    return shapes[weight][1]


def _require_kind(folder: Path, config: Any, kind: str | None) -> None:
    if not isinstance(config, dict) or not isinstance(config.get("input_features"), dict) or "type" not in config:
        raise UserError(f"{folder / CONFIG} is not the config of a LeRobot policy")
    if kind is not None and config["type"] != kind:
        raise UserError(
            f"the policy {folder} is of type '{config['type']}', not '{kind}'",
            again(extractor=config["type"]),
        )
    if config.get("use_peft"):
        raise UserError(f"the policy {folder} is an adapter on another policy; merge it into one file first")


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"the policy {folder} lacks {WEIGHTS}", "hf download --local-dir DIR REPO")
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}", "hf download --local-dir DIR REPO") from error


def _require_pipelines(folder: Path, shapes: Mapping[str, Any]) -> None:
    old = next((key for key in shapes if key.startswith(OLD_NORMALISATION)), None)
    if old is not None:
        raise UserError(
            f"the policy {folder} was saved before LeRobot 0.4: its normalisation lies in the weights ('{old}')",
            ["python", "-m", "lerobot.processor.migrate_policy_normalization", "--pretrained-path", folder],
        )
    for name in PIPELINES:
        if not (folder / name).is_file():
            raise UserError(
                f"the policy {folder} lacks {name}, through which it sees its inputs; lerobot-train saves it beside the weights",
                ["ls", folder],
            )
    for path in _state_files(folder):
        if not path.is_file():
            raise UserError(f"the policy {folder} lacks {path.name}, which one of its pipelines names")


def _state_files(folder: Path) -> Iterator[Path]:
    for name in PIPELINES:
        if (folder / name).is_file():
            for step in read_json(folder / name).get("steps", []):
                if step.get("state_file"):
                    yield folder / step["state_file"]


def _rename(folder: Path) -> dict[str, str]:
    steps = read_json(folder / PIPELINES[0]).get("steps", [])
    maps = (step.get("config", {}).get("rename_map") or {} for step in steps)
    return {before: after for one in maps for before, after in one.items()}


def _digest(folder: Path) -> str:
    """Every byte counts: a policy whose head alone was trained further differs in the middle of its file."""
    names = [CONFIG, WEIGHTS, *PIPELINES]
    paths = sorted({folder / name for name in names} | set(_state_files(folder)))
    whole = hashlib.sha256()
    for path in paths:
        if path.is_file():
            whole.update(f"{path.name}\0{file_digest(path)}\n".encode())
    return whole.hexdigest()[:12]
