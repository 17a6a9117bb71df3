"""The control that RL must beat: the baseline at its best temperature and top-k, since RL also just sharpens sampling.

The choice is made on validation episodes, never on those that are scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from worldsim import metrics
from worldsim.commands._agenda import Agenda, Order
from worldsim.commands._imagine import Studio
from worldsim.core import registry
from worldsim.core.errors import UserError, again
from worldsim.core.protocols import EpisodeSource, WorldModel
from worldsim.core.runs import RunContext
from worldsim.data.predictions import load, save
from worldsim.data.split import split_episodes
from worldsim.metrics.scoring import mean_where_defined
from worldsim.world_models import SupportsTemperature

FOLDER = "control"


@dataclass(frozen=True)
class Search:
    """What is tried. ``top_k`` 0 takes every code; ``metric`` is a registered one; ``validation`` chooses the episodes."""

    temperatures: tuple[float, ...]
    top_k: tuple[int, ...]
    metric: str
    validation: str | None
    episodes: int | None

    def points(self) -> list[tuple[float, int]]:
        """(temperature, top-k), each way of drawing once: the likeliest code alone is the same at any temperature."""
        out: list[tuple[float, int]] = []
        for temperature, k in product(self.temperatures, self.top_k):
            point = (0.0, 0) if temperature == 0 or k == 1 else (float(temperature), k)
            if point not in out:
                out.append(point)
        return out


@dataclass
class Control:
    """What was chosen, and what every point scored on the validation episodes."""

    temperature: float
    top_k: int
    metric: str
    episodes: list[str]
    tried: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return vars(self)

    @property
    def text(self) -> str:
        kept = f"top-k {self.top_k}" if self.top_k else "every code"
        return (
            f"temperature {self.temperature:g}, {kept}: the best {self.metric} of {len(self.tried)} ways of drawing on "
            f"{len(self.episodes)} validation episodes"
        )


def choose(
    search: Search,
    order: Order,
    model: WorldModel,
    source: EpisodeSource,
    scored: Agenda,
    context: RunContext,
) -> Control:
    """Imagine the validation episodes at every point and take the best one.

    Args:
        order: of the scored episodes. scored: their agenda; none of them may be a validation episode.

    Raises:
        UserError: the model does not draw from a distribution; there are no validation episodes, or scored ones among them.
    """
    if not isinstance(model, SupportsTemperature):
        raise UserError("control=true needs a baseline that draws from a distribution over codes", "worldsim models list")
    own = replace(order, episodes=validation_part(search.validation, order.data, source), max_episodes=search.episodes)
    own = replace(own, permutations=0, num_samples=1, reconstruct=False)
    better = 1 if (registry.card("metrics", search.metric) or {})["better"] == "higher" else -1
    tried: list[dict[str, Any]] = []
    episodes: list[str] = []
    for temperature, k in search.points():
        told = replace(own, temperature=temperature, top_k=k)
        studio = Studio(told, model, source, context.seed, lambda text: context.note(f"validation episodes: {text}"))
        agenda = studio.agenda()
        both = {p.episode for p in agenda.scenes} & {p.episode for p in scored.scenes}
        if both:
            raise UserError(
                f"validation = {search.validation}: episode {min(both)} is scored as well",
                again(validation="val"),
            )
        folder = context.out / FOLDER / f"temperature-{temperature:g}-top-k-{k}"
        files = imagined(studio, agenda, folder, f"temperature {temperature:g}, top-k {k or 'all'}")
        tried.append({"temperature": temperature, "top_k": k, search.metric: _score(files, search.metric)})
        episodes = [p.episode for p in agenda.imagined]
    chosen = max(tried, key=lambda one: better * one[search.metric])
    return Control(chosen["temperature"], chosen["top_k"], search.metric, episodes, tried)


def imagined(studio: Studio, agenda: Agenda, folder: Path, title: str) -> list[Path]:
    """Imagine into ``folder`` what is not there yet; the files in the agenda's order."""

    def path(episode: str) -> Path:
        return folder / f"{agenda.names[episode]}.npz"

    done: Callable[[Any], bool] = lambda planned: path(planned.episode).exists()  # noqa: E731
    for prediction in studio.batches(agenda, done, title=title):
        save(path(prediction.episode), prediction)
    return [path(planned.episode) for planned in agenda.imagined]


def validation_part(chosen: str | None, data: Path, source: EpisodeSource) -> str:
    """The validation episodes: as named, else the dataset's own part of that name.

    Raises:
        UserError: none are named, and there is no such part.
    """
    if chosen is not None:
        return chosen
    split = split_episodes(source.ids(), source.card.splits)
    if not split.parts.get("val") or not split.parts.get("test"):
        raise UserError(
            f"{data} has no validation part; name the episodes on which the baseline's temperature is chosen",
            again(validation="train"),
        )
    return "val"


def _score(files: list[Path], name: str) -> float:
    """The mean over episodes of their means over frames."""
    metric = metrics.load(name)
    means = []
    for path in files:
        p = load(path)
        if p.truth is None:
            raise UserError(f"{path} has no truth to choose a temperature by")
        means.append(mean_where_defined(metric(p.pred[1:], p.truth[1:], p.given), axis=0))
    return float(np.nanmean(means)) if np.isfinite(means).any() else float("nan")
