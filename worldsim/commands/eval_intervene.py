"""``worldsim eval intervene``: does a world-modality policy use its world tokens? Wrong ones are put in, and the error is compared.

Writes ``intervention.json`` (ratios corrupted / clean with intervals over episodes, per action entry and per step) and ``report/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldsim.commands._latents import folders
from worldsim.commands._modality_compare import Options, compare
from worldsim.commands._modality_corruptions import KNOWN, names
from worldsim.commands.infer import check_counts
from worldsim.core.config import config
from worldsim.core.errors import UserError
from worldsim.core.runs import RunContext
from worldsim.core.types import Result


@config
class Config:
    """What to corrupt.

    Attributes:
        data: dataset folder, any format. columns: where its columns lie; the dataset itself when null.
        model: run folders of arms that read world tokens (C, C_hist, C_pred, C_oracle); seeds of one arm are averaged.
        episodes: as in ``infer``; the held-out ones when null. Episodes that a run was trained on are refused.
        interventions: ``random`` ids; ``stale``, those of ``delay`` frames earlier; ``other_episode`` at the same phase;
            ``nearest_wrong`` centroid; ``graded`` by centroid distance; ``shuffle`` across windows; ``block`` attention;
            ``zero`` embedding; and for arms that attend to a future ``zero_future``, ``random_future``, ``shuffle_future`` and
            ``oracle``, the true one.
        shares: of ``graded``: 0 the nearest other centroid … 1 the farthest.
        resamples: bootstrap draws of episodes. batch: frames per forward pass of the encoder. max_rejected: bad episodes
            that are accepted.
    """

    data: str | None = None
    columns: str | None = None
    model: tuple[str, ...] = ()
    episodes: str | None = None
    interventions: tuple[str, ...] = KNOWN
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    delay: int = 8
    resamples: int = 2000
    batch: int = 64
    max_rejected: int = 0

    def __post_init__(self) -> None:
        check_counts(self, least_one=("resamples", "batch", "delay"), least_zero=("max_rejected",))
        names(self.interventions, self.shares)
        if not self.interventions:
            raise ValueError("interventions names none: there is nothing to do")
        if not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"shares must lie in 0 … 1, not {self.shares}")


def run(config: Config, context: RunContext) -> Result:
    """Measure every run with true and with wrong world input, and write the report.

    Raises:
        UserError: a run is missing or reads no world tokens, runs cannot be compared, or an episode was trained on.
    """
    data, _ = folders(config.data, config.columns)
    if not config.model:
        raise UserError("no run was named", ["worldsim", "eval", "intervene", data, "--model", "RUN"])
    context.inputs["data"] = str(data)
    for k, text in enumerate(config.model):
        context.reads(f"model {k}", Path(text))
    options = Options(
        columns=config.columns,
        episodes=config.episodes,
        interventions=config.interventions,
        shares=config.shares,
        delay=config.delay,
        resamples=config.resamples,
        clips=0,
        alone=True,
        batch=config.batch,
        max_rejected=config.max_rejected,
    )
    runs = [Path(text) for text in config.model]
    return compare(runs, data, context.out, options=options, device=context.device, seed=context.seed, note=context.note)


def plan(config: Config, seed: int = 0) -> dict[str, Any]:
    """What would be measured; opens nothing."""
    return {"runs": list(config.model), "interventions": names(config.interventions, config.shares)}
