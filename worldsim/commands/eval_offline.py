"""``worldsim eval offline``: held-out action error and token accuracy of world-modality policies, arm against arm.

Trains nothing. Writes ``comparison.json`` (every number with its interval over episodes) and ``report/`` (``REPORT.md``,
``index.html``, charts, tables as CSV), whose one sentence follows from the intervals by the rule in ``report.verdicts``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldsim.commands._latents import folders
from worldsim.commands._modality_compare import QUICK, Options, compare
from worldsim.commands._modality_corruptions import names
from worldsim.commands._modality_runs import left_by_training
from worldsim.commands.infer import check_counts
from worldsim.core.config import config
from worldsim.core.errors import UserError, again
from worldsim.core.runs import RunContext
from worldsim.core.types import Result

LEFT = "runs/train/world_modality_all"


@config
class Config:
    """What to compare.

    Attributes:
        data: dataset folder, any format. columns: where its columns lie; the dataset itself when null.
        model: run folders of ``train --config world_modality_…``, any arms, seeds and shares of the data.
        all_arms: instead, every arm and seed that ``train --config world_modality_all`` left in ``runs``
            (``runs/train/world_modality_all`` when null).
        seeds: with ``all_arms``, the first so many seeds of every arm; an arm with fewer is refused.
        episodes: as in ``infer``; the held-out ones when null. Episodes that a run was trained on are refused.
        interventions: corruptions of the world input (see ``eval intervene``); ``[]`` for none. delay: of ``stale`` tokens, frames.
        resamples: bootstrap draws of episodes.
        success: result folders of ``eval policy``, whose counts fill section 5 of the report.
        clips: held-out episodes whose predicted tokens are shown.
        batch: frames per forward pass of the encoder. max_rejected: bad episodes that are accepted.
    """

    data: str | None = None
    columns: str | None = None
    model: tuple[str, ...] = ()
    all_arms: bool = False
    seeds: int = 3
    runs: str | None = None
    episodes: str | None = None
    interventions: tuple[str, ...] = QUICK
    delay: int = 8
    resamples: int = 2000
    success: tuple[str, ...] | str | None = None
    clips: int = 2
    batch: int = 64
    max_rejected: int = 0

    def __post_init__(self) -> None:
        check_counts(self, least_one=("seeds", "resamples", "batch", "delay"), least_zero=("clips", "max_rejected"))
        names(self.interventions, (0.0, 1.0))


def run(config: Config, context: RunContext) -> Result:
    """Measure every run on the same held-out windows, compare, and write the report.

    Raises:
        UserError: a run is missing or no world-modality policy, runs cannot be compared, or an episode was trained on.
    """
    data, _ = folders(config.data, config.columns)
    runs = paths(config)
    context.inputs["data"] = str(data)
    for k, path in enumerate(runs):
        context.reads(f"model {k}", path)
    options = Options(
        columns=config.columns,
        episodes=config.episodes,
        interventions=config.interventions,
        shares=(0.0, 1.0),
        delay=config.delay,
        resamples=config.resamples,
        success=counted(config.success),
        clips=config.clips,
        batch=config.batch,
        max_rejected=config.max_rejected,
    )
    return compare(runs, data, context.out, options=options, device=context.device, seed=context.seed, note=context.note)


def counted(success: tuple[str, ...] | str | None) -> tuple[str, ...]:
    """``success`` as folders: one text is one."""
    return (success,) if isinstance(success, str) else tuple(success or ())


def paths(config: Config) -> list[Path]:
    """The runs that are compared.

    Raises:
        UserError: none was named.
    """
    if config.all_arms:
        return left_by_training(Path(config.runs or LEFT), config.seeds, config.data)
    if not config.model:
        raise UserError("no run was named: give --model RUN, or --all-arms", again(all_arms="true"))
    return [Path(text) for text in config.model]


def plan(config: Config, seed: int = 0) -> dict[str, Any]:
    """Which runs would be compared; opens none."""
    return {"runs": [str(path) for path in paths(config)], "interventions": list(config.interventions)}
