"""The pictures of a codebook as one sheet: what each code looks like, the most frequent first."""

from __future__ import annotations

import math

import numpy as np

from worldsim.report.video import BACKGROUND, GAP, enlarged, label_bar

MOST = 1024
"""Pictures on one sheet."""
LEAST = 48
"""Pixels of a small picture's short side after enlarging."""
LABEL = 14


def codebook_sheet(pictures: np.ndarray, frequencies: np.ndarray, most: int = MOST) -> np.ndarray:
    """uint8 ``[N, h, w, 3]`` -> one picture, uint8 ``[H', W', 3]``: each under ``code: share of the frames in percent``.

    Args:
        frequencies: how often each code occurs, ``[N]``. Codes are ordered by it, ties by number; at most ``most`` are shown.
    """
    order = np.argsort(-frequencies, kind="stable")[:most]
    total = max(int(frequencies.sum()), 1)
    big = enlarged(pictures[order], LEAST)
    height, width = big.shape[1:3]
    across = max(1, math.ceil(math.sqrt(len(order) * (height + LABEL + GAP) / (width + GAP))))
    down = math.ceil(len(order) / across)
    tall, wide = height + LABEL + GAP, width + GAP
    sheet = np.full((down * tall + GAP, across * wide + GAP, 3), BACKGROUND, np.uint8)
    for place, (code, picture) in enumerate(zip(order, big)):
        top, left = GAP + place // across * tall, GAP + place % across * wide
        text = f"{code}: {100 * frequencies[code] / total:.1f}%"
        sheet[top : top + LABEL, left : left + width] = label_bar(text, width, LABEL)
        sheet[top + LABEL : top + LABEL + height, left : left + width] = picture
    return sheet
