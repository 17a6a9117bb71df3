"""Frames that repeat the one before them: what token world models do when they get stuck. Rates, not scores: no metric of
the shelf, because a video of a scene that rests repeats rightly; read it beside the truth's own rate.

source: RLVR-World, arXiv 2505.13934, section 6.3 ("repetition rate"); there of the last pair alone, here of any consecutive pair.
"""

from __future__ import annotations

import numpy as np


def repeats(frames: np.ndarray) -> np.ndarray:
    """Whether each frame but the first is identical, number for number, to the one before it.

    Args:
        frames: ``[1 + n, …]``, pixels or tokens; the first is what the predicted ones follow.

    Returns:
        bool ``[n]``.
    """
    same = frames[1:] == frames[:-1]
    return same.all(axis=tuple(range(1, same.ndim)))


def beyond(rates: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What each episode repeats beyond its truth: the difference of rates ``[E]``, not cut off at 0."""
    return np.asarray(rates, np.float64) - np.asarray(truth, np.float64)
