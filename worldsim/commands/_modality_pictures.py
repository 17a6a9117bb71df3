"""Predicted world tokens as pictures, beside the frames that really came."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from worldsim.core.files import replacing
from worldsim.report.strip import strip
from worldsim.report.video import BACKGROUND, GAP, side_by_side, write_mp4, write_png

MOMENTS = 3
"""Moments of an episode in the strip."""
LEAST = 112


def fitted(pictures: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 ``[n, h, w, 3]`` at another size, ``[n, height, width, 3]``; pixels are repeated, not smoothed."""
    rows = (np.arange(height) * pictures.shape[1] / height).astype(int)
    columns = (np.arange(width) * pictures.shape[2] / width).astype(int)
    return pictures[:, rows[:, None], columns[None]]


def imagination_strip(path: Path, frames: np.ndarray, starts: np.ndarray, predicted: np.ndarray) -> None:
    """For some moments: the current frame, the nearest frames of the predicted tokens, the frames that came.

    Args:
        frames: uint8 ``[T, H, W, 3]``, an episode's. starts: ``[n]``, the windows' t. predicted: uint8
            ``[n, K, h, w, 3]``, the pictures of the tokens predicted for frames ``t + 1 … t + K``.
    """
    height, width = frames.shape[1:3]
    future = predicted.shape[1]
    steps = sorted({round(step) for step in np.linspace(0, future, min(future, 5) + 1)})
    parts = []
    for index in moments(len(starts)):
        t = int(starts[index])
        told = np.concatenate([frames[t : t + 1], fitted(predicted[index], height, width)])
        rows = {"predicted token": told, "what came": frames[t : t + future + 1]}
        parts.append(strip(rows, steps, least=LEAST))
        parts.append(np.full((GAP * 3, parts[-1].shape[1], 3), BACKGROUND, np.uint8))
    write_png(path, np.concatenate(parts[:-1], axis=0))


def moments(count: int) -> list[int]:
    """Up to ``MOMENTS`` windows, evenly spread."""
    return sorted({round(k) for k in np.linspace(0, count - 1, min(MOMENTS, count))})


def imagination_film(
    folder: Path, name: str, frames: np.ndarray, starts: np.ndarray, predicted: np.ndarray, fps: float
) -> str:
    """Current frame | nearest frame of the token predicted for K frames later | the frame K later, over all windows.

    Writes ``<name>.mp4`` and ``<name>.gif`` into ``folder``; returns the second's file name. Arguments as above.
    """
    film = side_by_side(panels(frames, starts, predicted))
    write_mp4(folder / f"{name}.mp4", film, fps)
    pictures = [Image.fromarray(frame) for frame in film]
    with replacing(folder / f"{name}.gif") as temporary:
        pictures[0].save(
            temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0
        )
    return f"{name}.gif"


def panels(frames: np.ndarray, starts: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """The film's three panels, label -> uint8 ``[n, H, W, 3]``."""
    future = predicted.shape[1]
    return {
        "camera, now": frames[starts],
        f"predicted token, +{future}": fitted(predicted[:, -1], *frames.shape[1:3]),
        f"camera, +{future}": frames[starts + future],
    }
