"""How many rows an action's effect lags behind it, measured from recorded actions and states.

A wrong ``action_delay`` is invisible in a loss curve and ruins what a world model learns of its actions. The state's next
change is explained by the state and the action row of ``d`` rows before, by least squares; the ``d`` that explains most is
the delay. State and action together cover targets (the change follows ``action - state``) and deltas alike, whatever the
number of dimensions.
# source: LeRobot's convention of rows, and spec section 10.1 of this project (delay by the best correlation)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

LONGEST = 5
"""Rows: 100 … 500 ms at the usual rates; longer lags are those of a policy, not of a robot."""
ROWS_PER_NUMBER = 20
"""So many rows are needed for each explaining number before a fit means anything."""
CLEARLY = 0.05
"""A delay is worth a remark when it explains this share of the variance more than the one in use."""


@dataclass(frozen=True)
class Delay:
    """What was measured.

    Attributes:
        explained: share of the variance of the state's next change that is explained at 0, 1, … rows of delay; each in 0 … 1.
    """

    explained: tuple[float, ...]

    @property
    def best(self) -> int:
        return int(np.argmax(self.explained))

    def beats(self, used: int) -> bool:
        """Whether the best delay explains clearly more than the one in use."""
        return used < len(self.explained) and self.explained[self.best] - self.explained[used] > CLEARLY


def measure(episodes: Iterable[tuple[np.ndarray, np.ndarray]], longest: int = LONGEST) -> Delay | None:
    """Over all episodes together, less those that hold a number that is not finite or are of another width than the first.

    Args:
        episodes: actions ``[T or T - 1, A]`` and states ``[T, S]`` of each, in any units.
        longest: rows of delay that are tried, from 0.

    Returns:
        None where there are too few rows, or nothing in the states ever changes.
    """
    parts = [_aligned(actions, states, longest) for actions, states in episodes if len(states) > longest + 1]
    parts = [part for part in parts if all(np.isfinite(rows).all() for rows in (*part[0], *part[1:]))]
    parts = [p for p in parts if (p[0][0].shape[1], p[1].shape[1]) == (parts[0][0][0].shape[1], parts[0][1].shape[1])]
    if not parts:
        return None
    state, change = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
    moving = change.std(0) > 1e-9 * (1 + np.abs(state).max(0))
    delayed = [np.concatenate([part[0][d] for part in parts]) for d in range(longest + 1)]
    if not moving.any() or len(state) < ROWS_PER_NUMBER * (1 + state.shape[1] + delayed[0].shape[1]):
        return None
    target = change[:, moving] / change[:, moving].std(0)
    return Delay(tuple(_explained(np.concatenate([rows, state], axis=1), target) for rows in delayed))


def _aligned(actions: np.ndarray, states: np.ndarray, longest: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Action rows ``t - d`` for each d, states at t, and their change until t + 1, for the same t everywhere; float64."""
    actions, states = np.asarray(actions, np.float64), np.asarray(states, np.float64)
    t = np.arange(longest, len(states) - 1)
    return [actions[t - d] for d in range(longest + 1)], states[t], states[t + 1] - states[t]


def _explained(inputs: np.ndarray, target: np.ndarray) -> float:
    """Share of the target's variance that a linear function of the inputs explains, over all dimensions alike."""
    spread = inputs.std(0)
    used = (inputs - inputs.mean(0))[:, spread > 1e-12] / spread[spread > 1e-12]
    centred = target - target.mean(0)
    weights = np.linalg.lstsq(used, centred, rcond=1e-8)[0]
    return float(1 - ((centred - used @ weights) ** 2).sum() / (centred**2).sum())
