"""Windows for policies: what had been seen at frame t, the chunk of actions from t on, and the tokens of the frames after it.

``actions[t]`` acts between frame t and frame t + 1, so a chunk of H actions from frame t is rows ``t … t + H - 1`` and its last
row leads to frame ``t + H``. A window lies inside one episode, and nothing is decoded here: numbers and columns alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.core.errors import UserError
from worldsim.data.stats import Stats, stats_of
from worldsim.data.transforms import SMALLEST_SCALE, Normalize


@dataclass(frozen=True)
class PolicyWindowSpec:
    """How windows are cut.

    Attributes:
        context: C, frames seen, the last of which is t. horizon: H, actions of a chunk. future: K, frames after t whose tokens
            are to be predicted.
    """

    context: int = 3
    horizon: int = 8
    future: int = 8

    def __post_init__(self) -> None:
        for key in ("context", "horizon", "future"):
            if getattr(self, key) < 1:
                raise UserError(f"{key} = {getattr(self, key)} must be at least 1")


def starts(num_frames: int, num_actions: int, spec: PolicyWindowSpec) -> range:
    """Every legal t: ``t - C + 1 >= 0``, ``t + H - 1 < num_actions`` and ``t + K < num_frames``; empty for a short episode.

    # source: world-modality-vla@7b3d6e7:world_modality/data_sr100.py, with episodes told apart (there they were not)
    """
    first, last = spec.context - 1, min(num_actions - spec.horizon, num_frames - spec.future - 1)
    return range(first, max(first, last + 1))


@dataclass
class PolicyEpisodes:
    """What policies read of episodes, by episode id; rows are as recorded.

    Attributes:
        actions: physical ``[T or T - 1, A]``. tokens: int ``[T, P]``. embeddings: float16 ``[T, P, d]`` (memory-mapped is fine).
        states: physical ``[T, S]``; empty for a dataset without states.
    """

    actions: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
    embeddings: dict[str, np.ndarray]
    states: dict[str, np.ndarray]

    def only(self, names: Iterable[str]) -> PolicyEpisodes:
        """These episodes, in this order."""
        wanted = list(names)
        parts = (self.actions, self.tokens, self.embeddings, self.states)
        return PolicyEpisodes(*({name: part[name] for name in wanted if name in part} for part in parts))


@dataclass(frozen=True)
class Scaling:
    """Numbers of training episodes that a network's inputs and outputs are scaled by; constant dimensions are only shifted.

    Attributes:
        actions: of action rows. states: of state rows; None for a dataset without.
        low, high: float64 ``[A]``, the 1 % and 99 % quantiles of training actions, physical.
        image_shift, image_scale: float32 ``[d]``, of embeddings over all frames and positions.
    """

    actions: Normalize
    states: Normalize | None
    low: np.ndarray
    high: np.ndarray
    image_shift: np.ndarray
    image_scale: np.ndarray

    @classmethod
    def fit(cls, train: PolicyEpisodes) -> Scaling:
        """Of training episodes; hand over no other.

        Raises:
            BadEpisode: a number that is not finite.
        """
        actions: Stats = stats_of(train.actions.items())
        states = Normalize.of(stats_of(train.states.items())) if train.states else None
        shift, scale = _moments(train.embeddings.values())
        return cls(Normalize.of(actions), states, actions.q01, actions.q99, shift, scale)

    @property
    def state_dim(self) -> int:
        """S; 0 for a dataset without states."""
        return 0 if self.states is None else self.states.dim

    def to_json(self) -> dict[str, Any]:
        lists = {key: getattr(self, key).tolist() for key in ("low", "high", "image_shift", "image_scale")}
        return {"actions": self.actions.to_json(), "states": self.states and self.states.to_json(), **lists}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scaling:
        lists = {key: np.array(data[key], np.float64) for key in ("low", "high")}
        images = {key: np.array(data[key], np.float32) for key in ("image_shift", "image_scale")}
        states = Normalize.from_json(data["states"]) if data["states"] else None
        return cls(Normalize.from_json(data["actions"]), states, **lists, **images)


def _moments(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation ``[d]`` over all rows of arrays ``[T, P, d]``, in float64, one array in memory."""
    count, total, square = 0, np.zeros(()), np.zeros(())
    for part in parts:
        rows = np.asarray(part, np.float64).reshape(-1, part.shape[-1])
        count, total, square = count + len(rows), total + rows.sum(0), square + (rows**2).sum(0)
    mean = total / max(count, 1)
    deviation = np.sqrt(np.maximum(square / max(count, 1) - mean**2, 0))
    constant = deviation < SMALLEST_SCALE * np.maximum(1.0, np.abs(mean))
    return mean.astype(np.float32), np.where(constant, 1.0, deviation).astype(np.float32)


class PolicyWindows:
    """All windows of some episodes, drawn as batches.

    Args:
        rows: the episodes. scaling: of the training episodes, whichever part this is.

    Attributes:
        episodes: ids of those that have a window. index_of: int64 ``[W]``, a window's position in ``episodes``.
        episode_of: str ``[W]``, a window's episode. start_of: int64 ``[W]``, its t.
    """

    def __init__(self, spec: PolicyWindowSpec, rows: PolicyEpisodes, scaling: Scaling) -> None:
        self.spec, self.rows, self.scaling = spec, rows, scaling
        found = {name: starts(len(rows.tokens[name]), len(acts), spec) for name, acts in rows.actions.items()}
        self.episodes = [name for name, legal in found.items() if legal]
        counts = [len(found[name]) for name in self.episodes]
        self.index_of = np.repeat(np.arange(len(counts)), counts)
        self.episode_of = np.array(self.episodes, dtype=str)[self.index_of]
        self.start_of = np.array([t for name in self.episodes for t in found[name]], np.int64)
        self._actions = [scaling.actions.forward(rows.actions[name]) for name in self.episodes]
        self._states = [self._state_rows(name) for name in self.episodes]

    def __len__(self) -> int:
        return len(self.start_of)

    def _state_rows(self, name: str) -> np.ndarray:
        """Normalised, float32 ``[T, S]``; S = 0 without states."""
        if self.scaling.states is None:
            return np.zeros((len(self.rows.tokens[name]), 0), np.float32)
        return self.scaling.states.forward(self.rows.states[name])

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Windows at ``indices``.

        Returns:
            ``states`` float32 ``[B, C, S]`` and ``actions`` float32 ``[B, H, A]``, both normalised; ``tokens`` int64
            ``[B, C, P]``, the last of which are those of frame t; ``future_tokens`` int64 ``[B, K, P]`` of frames
            ``t + 1 … t + K``; ``embeddings`` float32 ``[B, C, P, d]``, as the encoder gave them.
        """
        picked = [(int(self.index_of[i]), int(self.start_of[i])) for i in np.asarray(indices, np.int64)]
        seen, ahead, chunk = self.spec.context, self.spec.future, self.spec.horizon

        def cut(parts: Mapping[str, np.ndarray], first: int, last: int, dtype: type) -> Tensor:
            """Frames ``t + first … t + last`` of per-frame arrays."""
            rows = [parts[self.episodes[e]][t + first : t + last + 1] for e, t in picked]
            return torch.from_numpy(np.stack(rows).astype(dtype))

        return {
            "states": torch.from_numpy(np.stack([self._states[e][t - seen + 1 : t + 1] for e, t in picked])),
            "actions": torch.from_numpy(np.stack([self._actions[e][t : t + chunk] for e, t in picked])),
            "tokens": cut(self.rows.tokens, 1 - seen, 0, np.int64),
            "future_tokens": cut(self.rows.tokens, 1, ahead, np.int64),
            "embeddings": cut(self.rows.embeddings, 1 - seen, 0, np.float32),
        }


def fraction_of(episodes: Sequence[str], fraction: float) -> list[str]:
    """``ceil(fraction * n)`` of the episodes, at least one, in their order; a smaller fraction is a part of a larger one.

    Which ones follows from their names (sha256) alone, so every arm and every seed sees the same.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"data_fraction = {fraction} must lie in (0, 1]")
    by_hash = sorted(episodes, key=lambda name: hashlib.sha256(f"fraction/{name}".encode()).digest())
    kept = set(by_hash[: max(1, math.ceil(fraction * len(episodes) - 1e-9))])
    return [name for name in episodes if name in kept]
