"""The action rows of a clip as a small inline SVG under its film, with a cursor that the page moves along."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT, MARGIN = 300, 64, 5
LINES = 6
"""Dimensions drawn, at most; also the number of colours that the page's style has for them."""


def drawn(actions: Sequence[np.ndarray]) -> list[int]:
    """Which of A dimensions are drawn: all, or the ``LINES`` that vary most over all clips (each ``[n, r, A]``), in order."""
    rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in actions]).astype(np.float64)
    if rows.shape[1] <= LINES:
        return list(range(rows.shape[1]))
    return sorted(np.argsort(-rows.std(axis=0), kind="stable")[:LINES].tolist())


def ranges(actions: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest value of every dimension over all clips, ``[A]`` each: one scale for all traces of a page."""
    rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in actions]).astype(np.float64)
    return rows.min(axis=0), rows.max(axis=0)


def trace(actions: np.ndarray, dims: Sequence[int], low: np.ndarray, high: np.ndarray, label: str) -> str:
    """Steps over time: row t is a level from frame t to frame t + 1, each dimension over its own range.

    Args:
        actions: ``[n, r, A]``. dims: which dimensions, see :func:`drawn`. low, high: ``[A]``, see :func:`ranges`.
        label: for those who cannot see it.
    """
    rows = actions.reshape(-1, actions.shape[-1]).astype(np.float64)
    edges = np.linspace(0, WIDTH, len(rows) + 1)
    parts = [
        f'<svg class="trace" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">',
        f'<line class="zero" x1="0" x2="{WIDTH}" y1="{HEIGHT / 2:g}" y2="{HEIGHT / 2:g}"/>',
    ]
    for k, d in enumerate(dims):
        span = high[d] - low[d]
        level = (rows[:, d] - low[d]) / span if span > 0 else np.full(len(rows), 0.5)
        y = HEIGHT - MARGIN - level * (HEIGHT - 2 * MARGIN)
        points = " ".join(f"{a:.1f},{v:.1f} {b:.1f},{v:.1f}" for a, b, v in zip(edges, edges[1:], y))
        parts.append(f'<polyline class="step step-{k}" points="{points}"/>')
    parts.append(f'<line class="cursor" x1="0" x2="0" y1="0" y2="{HEIGHT}"/></svg>')
    return "".join(parts)
