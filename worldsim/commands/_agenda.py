"""What ``infer`` and ``eval video`` are to imagine: the order, and the scenes that came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from worldsim.commands import _policy_actions
from worldsim.core.errors import UserError, again
from worldsim.core.types import DatasetCard
from worldsim.data.unfolding import Start
from worldsim.world_models import Needs


@dataclass(frozen=True)
class Order:
    """What is to be imagined; the meaning of each entry stands in ``commands.infer.Config``."""

    data: Path
    frames: int
    episodes: str | None = None
    max_episodes: int | None = None
    camera: str | None = None
    actions: str = "dataset"
    columns: str | None = None
    start: int | None = None
    fps: float | None = None
    num_samples: int = 1
    permutations: int = 0
    batch: int = 4
    steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    reconstruct: bool = False


@dataclass(frozen=True)
class Planned:
    """A scene that will be imagined: what is known before a frame is decoded.

    Attributes:
        actions: ``[n, r, A]``; nothing yet (zeros) where a policy acts in the dream, which begins with ``start``.
    """

    index: int
    episode: str
    stride: int
    actions: np.ndarray
    start: Start | None = None


@dataclass
class Agenda:
    """The scenes, in the source's order, and who was left out and why."""

    scenes: list[Planned] = field(default_factory=list)
    too_short: list[str] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def imagined(self) -> list[Planned]:
        """The scenes less those that turned out to be undecodable."""
        dropped = {record["episode"] for record in self.rejected}
        return [planned for planned in self.scenes if planned.episode not in dropped]


def require_actions(wants: Needs, card: DatasetCard, order: Order) -> None:
    """The dataset's actions must mean what the model was trained on; a policy chooses such rows too."""
    policy = order.actions.startswith(_policy_actions.PREFIX)
    if policy and wants.action_column != "raw":
        raise UserError(
            f"--actions {order.actions}: a policy chooses actions, and the model is driven by the latents "
            f"'{wants.action_column}'",
            again(actions="dataset"),
        )
    if wants.action_spec is None or wants.action_column != "raw":
        return
    if order.actions == "dataset" or policy:
        if card.actions is None:
            raise UserError(f"{order.data} has no actions, and the model needs {wants.action_spec.dim} numbers per step")
        wants.action_spec.require(card.actions, mine="the model", theirs=str(order.data))


def rate(wants: Needs, fps: float | None) -> float | None:
    """The scene's frame rate: the model's own, or the chosen one for a model that takes any."""
    if wants.fps and fps and abs(wants.fps - fps) > 1e-3:
        raise UserError(f"the model was trained at {wants.fps:g} frames per second; fps={fps:g} is another rate")
    return wants.fps or fps or None


def hertz(fps: float | None) -> str:
    return f"{fps:g} fps" if fps else "the dataset's rate"


def some(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
