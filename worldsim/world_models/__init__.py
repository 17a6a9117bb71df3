"""World models: context frames and actions in, future frames out. Each file holds one; :func:`load` finds it.

Besides :class:`~worldsim.core.protocols.WorldModel` a model may offer more; the optional powers below are asked for with
``isinstance``. A size or rate of 0 on a model (``height``, ``width``, ``fps``) means that it takes what it is given.
:func:`needs` reads what a model states about the clips it wants, optional attributes included.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import yaml

from worldsim.core import registry
from worldsim.core.errors import UserError, did_you_mean
from worldsim.core.files import read_json
from worldsim.core.protocols import WorldModel
from worldsim.core.types import ActionSpec
from worldsim.world_models import _worldeval_files

CARD_FILE, WEIGHTS_FILE = "card.json", "model.safetensors"
BUNDLED = Path(__file__).resolve().parents[1] / "bases"
"""Checkpoints that travel in the package; those of world models are loaded by their folder's name."""


@runtime_checkable
class SupportsReconstruct(Protocol):
    """A model that sees pictures through a codec, and can say what the codec alone costs."""

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """Encode and decode the truth: uint8 ``[B, T, H, W, 3]`` in, the same shape out. Any T >= 1."""
        ...


@runtime_checkable
class SupportsSampling(Protocol):
    """A model that is sampled in steps, with or without guidance towards its actions."""

    def set_sampling(self, steps: int | None = None, guidance: float | None = None) -> None:
        """Change how the next rollouts are sampled; None keeps the model's own value. ``guidance`` 1.0 is off."""
        ...


@runtime_checkable
class SupportsInstructions(Protocol):
    """A model that also reads the task in words."""

    def set_instructions(self, instructions: Sequence[str | None]) -> None:
        """What the contexts of the next rollouts are about, one per context of the batch; None where there is no text."""
        ...


@runtime_checkable
class SupportsTokenizer(Protocol):
    """A model that speaks in a tokenizer's codes. Shelves do not import each other, so a command hands it over."""

    def attach(self, tokenizer: Any) -> None:
        """Take the tokenizer (an object of the shelf ``tokenizers``) whose codes it was trained on; another is refused."""
        ...


@runtime_checkable
class SupportsPastActions(Protocol):
    """A model whose history holds the actions between the given frames too."""

    def set_past_actions(self, rows: np.ndarray | None) -> None:
        """Rows ``[B, T0 - 1, r, A]`` between the frames of the next rollout's contexts, physical units; None: unknown."""
        ...


@runtime_checkable
class SupportsTemperature(Protocol):
    """A model that draws from a distribution over codes."""

    def set_temperature(self, temperature: float | None = None, top_k: int | None = None) -> None:
        """How the next rollouts are drawn; None keeps the model's own value, ``top_k`` 0 takes every code."""
        ...


@runtime_checkable
class SupportsRepeats(Protocol):
    """A model that knows where a frame is the very same tokens as the one before it.

    Attributes:
        repeats: of the last rollout, bool ``[B, N, n]``; None before the first.
        told_repeats: of the last reconstruction, bool ``[B, T - 1]``.
    """

    repeats: np.ndarray | None
    told_repeats: np.ndarray | None


@dataclass(frozen=True)
class Needs:
    """What clips a model wants.

    Attributes:
        height, width: pixels; 0 takes any.
        fps: frames per second; 0 takes any.
        context_frames: history it can use, at least 1.
        action_spec: the meaning of its action rows; None for a model that ignores them.
        camera: the camera it was trained on (optional attribute ``camera``); None takes the dataset's first by name.
        action_delay: rows between a command and its effect in training (optional attribute ``action_delay``).
        action_column: ``raw`` for the dataset's own rows, else the latent actions it was trained on, as ``plugin``,
            ``plugin@fingerprint`` or by what made them, ``data.columns.ColumnSpec.maker`` (optional attribute).
        teacher_forced: whether its action rows have seen the true frames that it is to imagine (optional attribute).
        train_episodes: ids of the episodes that it was trained on (optional attribute); empty where it does not say.
        action_dropout: share of clips whose actions were hidden in training (optional attribute); None where it does not say.
        least_context: given frames without which it is asked what it never learnt (optional attribute); it takes fewer.
    """

    height: int
    width: int
    fps: float
    context_frames: int
    action_spec: ActionSpec | None
    camera: str | None
    action_delay: int
    action_column: str
    teacher_forced: bool = False
    train_episodes: tuple[str, ...] = ()
    action_dropout: float | None = None
    least_context: int = 1


def needs(model: WorldModel) -> Needs:
    """What ``model`` states about its clips, with the defaults of what it does not state."""
    return Needs(
        height=model.height,
        width=model.width,
        fps=model.fps,
        context_frames=max(1, model.context_frames),
        action_spec=getattr(model, "action_spec", None),
        camera=getattr(model, "camera", None),
        action_delay=getattr(model, "action_delay", 0),
        action_column=getattr(model, "action_column", None) or "raw",
        teacher_forced=bool(getattr(model, "teacher_forced", False)),
        train_episodes=tuple(getattr(model, "train_episodes", ())),
        action_dropout=getattr(model, "action_dropout", None),
        least_context=getattr(model, "least_context", 1),
    )


def load(name_or_run: str | Path, device: str = "cpu") -> WorldModel:
    """A world model by name (``copy``, which needs no weights, or one in the package) or from a run folder.

    A run folder resolves to its ``checkpoint/``, which holds ``card.json`` (its key ``world_model`` is the registered
    name) and ``model.safetensors``. A checkpoint folder itself is taken too, and a checkpoint of WorldEval (``X.ckpt``,
    file or DeepSpeed directory, or a folder with one) with ``X.yaml`` beside it: docs/routes.md.

    Raises:
        UserError: not a registered name and not a run folder, an unfinished run, or a missing file; each with a command.
    """
    path = located(name_or_run)
    if not path.exists():
        return _by_name(str(name_or_run), device)
    other = foreign(path)
    if other is not None:
        from worldsim.world_models import _wan_worldeval

        return _wan_worldeval.load(other, device)
    checkpoint = resolve_checkpoint(path)
    card = read_json(checkpoint / CARD_FILE)
    name = card.get("world_model") if isinstance(card, dict) else None
    if not name:
        raise UserError(f"{checkpoint / CARD_FILE} names no world model (key 'world_model')", "worldsim models list")
    if not (checkpoint / WEIGHTS_FILE).exists():
        raise UserError(f"{checkpoint / WEIGHTS_FILE} is missing", _resume(path))
    return registry.get("world_models", name).load(checkpoint, device)


def located(name_or_run: str | Path) -> Path:
    """The path itself, or the folder in the package of the world model of that name."""
    path, inside = Path(str(name_or_run)), BUNDLED / str(name_or_run)
    return inside if not path.exists() and str(name_or_run) in bundled() else path


def bundled() -> list[str]:
    """Names of the world models whose checkpoints travel in the package."""
    cards = sorted(BUNDLED.glob(f"*/{CARD_FILE}"))
    return [card.parent.name for card in cards if "world_model" in read_json(card)]


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint folder of a run folder, or of itself; raises naming what is wrong."""
    for folder in (path, path / "checkpoint"):
        if (folder / CARD_FILE).exists():
            return folder
    if (path / "config.yaml").exists():
        _refuse_other_kind(path)
        raise UserError(f"{path} is an unfinished run: it has no checkpoint/{CARD_FILE} yet", _resume(path))
    raise UserError(f"{path} is no run folder: it has no checkpoint/{CARD_FILE}", "worldsim finetune-wan DATA")


def _refuse_other_kind(path: Path) -> None:
    """
    Raises:
        UserError: the run in ``path`` is finished and made no model; names the command that it is of.
    """
    saved, result = yaml.safe_load((path / "config.yaml").read_text(encoding="utf8")) or {}, path / "result.json"
    if not result.exists() or read_json(result).get("status") != "done" or (path / "checkpoint").exists():
        return
    model = saved.get("model")
    used = f"; the model that it used is {model}" if model else ""
    raise UserError(
        f"{path} is a run of {str(saved.get('command')).replace('eval-', 'eval ')}, not a model{used}",
        f"worldsim infer DATA --model {shlex.quote(str(model))}" if model else "worldsim models list world-models",
    )


def rollout_memory(name_or_run: str | Path, batch: int) -> float | None:
    """GiB of accelerator memory for rollouts of ``batch`` clips, without loading weights; None for a model without any.

    Raises:
        UserError: as :func:`load`.
    """
    path = located(name_or_run)
    if not path.exists():
        _by_name(str(name_or_run), "cpu")
        return None
    other = foreign(path)
    if other is not None:
        from worldsim.world_models import _wan_worldeval

        return _wan_worldeval.rollout_memory(other, batch)
    checkpoint = resolve_checkpoint(path)
    plugin = registry.get("world_models", read_json(checkpoint / CARD_FILE).get("world_model", ""))
    return plugin.rollout_memory(checkpoint, batch) if hasattr(plugin, "rollout_memory") else None


def foreign(path: Path) -> Path | None:
    """The WorldEval checkpoint that ``path`` names; None for a run folder, whatever else it holds."""
    own = any((folder / CARD_FILE).exists() for folder in (path, path / "checkpoint"))
    return None if own else _worldeval_files.find(path)


def _by_name(name: str, device: str) -> WorldModel:
    known = [*registry.names("world_models"), *bundled()]
    if name.replace("_", "-") not in known:
        raise UserError(
            f"there is no run folder and no world model '{name}'{did_you_mean(name, known)}", "worldsim models list"
        )
    plugin: Any = registry.get("world_models", name)
    if not hasattr(plugin, "ready"):
        raise UserError(f"the world model '{name}' needs trained weights", "worldsim finetune-wan DATA")
    return plugin.ready(device)


def _resume(path: Path) -> list[str]:
    """The command that finishes the run in ``path``."""
    config = path / "config.yaml"
    saved = yaml.safe_load(config.read_text(encoding="utf8")) if config.exists() else None
    command = (saved or {}).get("command", "finetune-wan")
    recipe = ["--config", str(config), "--seed", str(saved.get("seed", 0))] if saved else []
    words = command.split("-", 1) if command.startswith(("eval-", "models-")) else [command]
    return ["worldsim", *words, *recipe, "--out", str(path)]
