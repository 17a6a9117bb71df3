"""Done when the picture has become the recorded episode's last one, where the two differ at the start."""

from __future__ import annotations

import numpy as np

from worldsim.core.registry import register

CARD = {
    "title": "Goal frame: the dream looks like the end of the recorded episode, where that differs from its start",
    "source": "worldsim",
    "size": "0",
    "license": "Apache-2.0",
}
CHANGED = 10
"""Levels of 255 by which a pixel must differ between the start and the goal to count (any channel)."""
LEAST = 8
"""Pixels that must differ; fewer say nothing about a task."""
SHARE = 0.25
"""Of the squared distance between start and goal that may be left."""


@register("judges")
class GoalFrame:
    """Over the pixels where start and goal differ, the mean squared distance to the goal has fallen to a quarter.

    It knows one way to be done, the demonstrated one, and sees pictures, not objects: whatever else looks like the goal
    passes. A scene whose start already is its goal is never done.
    """

    def __call__(self, frames: np.ndarray, goal: np.ndarray) -> bool:
        start, now, end = (np.asarray(picture, np.float64) for picture in (frames[0], frames[-1], goal))
        moved = np.abs(start - end).max(axis=-1) > CHANGED
        if moved.sum() < LEAST:
            return False
        return bool(((now - end)[moved] ** 2).mean() <= SHARE * ((start - end)[moved] ** 2).mean())

    @classmethod
    def tiny(cls) -> GoalFrame:
        return cls()
