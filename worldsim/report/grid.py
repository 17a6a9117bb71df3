"""Many short films at once: a row per policy, a column per seed, each marked from the moment it succeeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldsim.report.video import BACKGROUND, GAP, enlarged, label_bar

SOLVED, FAILED = (46, 160, 97), (150, 62, 58)
BORDER = 3


@dataclass(frozen=True)
class Tile:
    """One film: uint8 ``[T, H, W, 3]``; ``solved_at``: the frame that first shows success, None where none does."""

    label: str
    frames: np.ndarray
    solved_at: int | None


def grid(rows: Sequence[Sequence[Tile]], least: int = 128, most: int = 600) -> np.ndarray:
    """uint8 ``[T', H', W', 3]``: every tile under its label with a border that turns green with success.

    A film that is over stands still, framed red where it never succeeded, until the longest is over; ``T'`` is its length.

    Args:
        rows: tiles; rows may differ in length, frames of one row in size not at all.
        least: pixels of a picture's short side. most: frames at most; longer films are thinned evenly.
    """
    length = max(len(tile.frames) for row in rows for tile in row)
    moments = np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int))
    return np.stack([_picture(rows, int(moment), least) for moment in moments])


def _picture(rows: Sequence[Sequence[Tile]], moment: int, least: int) -> np.ndarray:
    lines = []
    for row in rows:
        cells = [_cell(tile, moment, least) for tile in row]
        gap = np.full((cells[0].shape[0], GAP, 3), BACKGROUND, np.uint8)
        lines.append(np.concatenate([part for cell in cells for part in (cell, gap)][:-1], axis=1))
    width = max(line.shape[1] for line in lines)
    padded = [np.pad(line, ((0, GAP), (0, width - line.shape[1]), (0, 0))) for line in lines]
    return np.concatenate(padded, axis=0)


def _cell(tile: Tile, moment: int, least: int) -> np.ndarray:
    over, solved = moment >= len(tile.frames) - 1, tile.solved_at is not None and moment >= tile.solved_at
    picture = enlarged(tile.frames[min(moment, len(tile.frames) - 1)], least)
    label = f"{tile.label}: solved at {tile.solved_at}" if solved else tile.label
    colour = SOLVED if solved else FAILED if over else BACKGROUND
    body = np.concatenate([label_bar(label, picture.shape[1]), picture], axis=0)
    framed = np.empty((body.shape[0] + 2 * BORDER, body.shape[1] + 2 * BORDER, 3), np.uint8)
    framed[:] = colour
    framed[BORDER:-BORDER, BORDER:-BORDER] = body
    return framed
