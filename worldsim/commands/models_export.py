"""``worldsim models export``: a fine-tuned Wan for diffusers or ComfyUI, with its conditioner; a policy for LeRobot."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from worldsim.core.config import config
from worldsim.core.errors import UserError
from worldsim.core.runs import RunContext
from worldsim.core.types import Result

USES_TORCH = False


@config
class Config:
    """What to export, and for whom.

    Attributes:
        model: run folder of a fine-tuned Wan, a WorldEval checkpoint, or the name of a random twin; for ``lerobot`` the run
            folder of a world-modality policy.
        to: ``diffusers`` (``load_lora_weights``), ``comfyui`` (the original's names) or ``lerobot`` (``--policy.path``).
        features: for ``lerobot``: the policy's camera -> LeRobot's name of it, such as ``observation.image``.
    """

    model: str | None = None
    to: Literal["diffusers", "comfyui", "lerobot"] = "diffusers"
    features: dict[str, str] = field(default_factory=dict)


def default_out(config: Config) -> str:
    return f"runs/models-export/{Path(config.model or 'none').stem}-{config.to}"


def run(config: Config, context: RunContext) -> Result:
    """Write the export into the run folder.

    Raises:
        UserError: no run was named, or it is no fine-tuned Wan.
    """
    if config.to == "lerobot":
        return _policy(config, context)
    from worldsim.world_models._wan_export import export, source
    from worldsim.world_models._wan_geometries import mismatch

    card, tensors = source(_named(config))
    other = mismatch(card.base)
    if other is not None:
        context.note(f"what is exported fits the base that it was trained on, which is not the one here: {other}")
    if Path(_named(config)).exists():
        context.inputs["model"] = _named(config)
    files = export(card, tensors, config.to, context.out)
    size = sum(p.stat().st_size for name in files for p in _inside(context.out / name))
    return Result(
        metrics={
            "files": files,
            "bytes": size,
            "base": card.base["model"],
            "route": card.net.route,
            "rank": card.net.rank,
            "alpha": card.net.alpha,
        },
        summary=f"{'LoRA' if card.net.rank else 'transformer'} and conditioner of {config.model} for {config.to}: "
        f"{', '.join(files)}",
        next=["cat", context.out / "README.md"],
    )


def _policy(config: Config, context: RunContext) -> Result:
    from worldsim.commands import _export_lerobot

    run = _named(config)
    context.reads("model", Path(run))
    about = _export_lerobot.export(run, context.out, config.features)
    size = sum(p.stat().st_size for name in about["files"] for p in _inside(context.out / name))
    return Result(
        metrics={**about, "bytes": size},
        summary=f"arm {about['arm']} of {run} for LeRobot, which sees {', '.join(about['features'])}",
        next=["cat", context.out / "README.md"],
    )


def _named(config: Config) -> str:
    if config.model is None:
        raise UserError("no run was named", "worldsim models export RUN --to diffusers")
    return config.model


def _inside(path: Path) -> list[Path]:
    return [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]


def plan(config: Config, seed: int = 0) -> dict[str, Any]:
    return {"model": _named(config), "to": config.to}
