"""What is to be imagined: the order as it was given, and the scenes that came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from worldsim.commands._closed_loop import Start


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
