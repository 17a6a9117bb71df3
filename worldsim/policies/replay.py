"""Recorded actions, sent again: the first test of a new robot, and the reference row of a closed-loop table."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from worldsim.core.errors import UserError, did_you_mean
from worldsim.core.protocols import Environment, EpisodeSource
from worldsim.core.registry import register
from worldsim.core.types import ActionSpec, DatasetCard, Episode, FrameStream, PolicyNeeds

CARD = {
    "title": "Replay of a dataset's own actions: replay:DATA[#EPISODE]",
    "source": "worldsim",
    "size": "0",
    "license": "Apache-2.0",
}


@register("policies")
class Replay:
    """Sends the rows of one episode, one per call, whatever it is shown.

    Args:
        source: the opened dataset. episode: an id; None takes episode ``seed`` modulo their number at every reset.

    Attributes:
        finished: whether every recorded row was sent. Afterwards the robot is held: an absolute target is repeated, a
            change becomes zero (the gripper keeps its value).
    """

    blind = True

    def __init__(self, source: EpisodeSource, episode: str | None = None) -> None:
        spec = source.card.actions
        if spec is None:
            raise UserError(f"replay: {source.card.name} has no actions", "worldsim doctor DATA")
        self.source, self.spec, ids = source, spec, source.ids()
        if episode is not None and episode not in ids:
            raise UserError(f"replay: {source.card.name} has no episode '{episode}'{did_you_mean(episode, ids)}")
        self.index = None if episode is None else ids.index(episode)
        self.needs = PolicyNeeds({}, (), spec, source.card.fps)
        self.rows: np.ndarray = np.zeros((0, spec.dim), np.float32)
        self.at = 0

    @classmethod
    def create(
        cls, name: str, env: Environment | None, *, open_dataset: Callable[[Path], EpisodeSource] | None = None
    ) -> Self:
        """``DATA`` or ``DATA#EPISODE``."""
        if open_dataset is None:
            raise UserError(f"replay:{name}: whoever opened it handed in no reader of datasets")
        data, _, episode = name.partition("#")
        return cls(open_dataset(Path(data)), episode or None)

    @classmethod
    def tiny(cls, env: Environment) -> Self:
        rng = np.random.default_rng(0)
        box = env.action_space
        rows = [rng.uniform(box.low, box.high, (5, len(box.low))).astype(np.float32) for _ in range(2)]
        return cls(_Recorded(rows, env.action_spec))

    @property
    def finished(self) -> bool:
        return self.at >= len(self.rows)

    def fork(self) -> Self:
        """The same dataset, at a row of its own."""
        return copy.copy(self)

    def reset(self, seed: int | None = None) -> None:
        """
        Raises:
            BadEpisode: the episode cannot be read.
        """
        index = (seed or 0) % len(self.source) if self.index is None else self.index
        rows = self.source.episode(index).actions
        if rows is None or not len(rows):
            raise UserError(f"replay: episode {self.source.ids()[index]} of {self.source.card.name} has no actions")
        self.rows, self.at = np.asarray(rows, np.float32), 0

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        row = self._held() if self.finished else self.rows[self.at]
        self.at += 1
        return row[None].copy()

    def _held(self) -> np.ndarray:
        last = self.rows[-1]
        if self.spec.mode == "absolute":
            return last
        if self.spec.mode == "unknown":
            raise UserError(
                "replay: every recorded action was sent, and whether the last may be repeated is not known: the dataset "
                "does not say if its actions are absolute (worldsim.json: actions.mode)"
            )
        still = np.zeros_like(last)
        if self.spec.gripper is not None:
            still[self.spec.gripper] = last[self.spec.gripper]
        return still


class _Recorded:
    """Actions in memory as a dataset."""

    def __init__(self, rows: list[np.ndarray], spec: ActionSpec) -> None:
        self.rows = rows
        self.card = DatasetCard("recorded", "memory", spec.rate, (), actions=spec)

    def __len__(self) -> int:
        return len(self.rows)

    def ids(self) -> list[str]:
        return [str(k) for k in range(len(self.rows))]

    def episode(self, index: int) -> Episode:
        blank = {"none": FrameStream.of(np.zeros((len(self.rows[index]), 2, 2, 3), np.uint8))}
        return Episode(str(index), index, "memory", self.card.fps, blank, actions=self.rows[index])

    def close(self) -> None:
        """Nothing is open."""
