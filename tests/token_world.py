"""A world whose next picture is known from the picture and the action: a card with two sides, and actions that turn it or not.

Whatever slips between frames and actions, in columns, windows, sequences or rollouts, makes it unlearnable.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from worldsim.core import registry
from worldsim.core.types import ActionSpec, CameraInfo, DatasetCard, Episode, FrameStream

SIDES = (16, 24)
TURNS = 2


def pictures() -> np.ndarray:
    """uint8 ``[2, 16, 24, 3]``: unlike each other, also to a tokenizer with random weights."""
    y, x = np.mgrid[0 : SIDES[0], 0 : SIDES[1]]
    out = np.stack([255 * (x < 12), 255 * ((x // 6 + y // 4) % 2)])
    colours = np.array([[1, 0.2, 0], [0.3, 0, 1]])
    return (out[..., None] * colours[:, None, None]).astype(np.uint8)


def episode(index: int, num_frames: int = 16, fps: float = 10.0) -> Episode:
    """``actions[t]`` = (turn or not, a number without meaning) leads from frame t to frame t + 1."""
    rng = np.random.default_rng([5, index])
    turns = rng.integers(0, TURNS, num_frames)
    at = (index + np.concatenate([[0], np.cumsum(turns[:-1])])) % TURNS
    actions = np.stack([turns, rng.integers(0, 2, num_frames)], 1).astype(np.float32)
    name = f"episode_{index:06d}"
    return Episode(name, index, name, fps, {"image": FrameStream.of(pictures()[at])}, actions)


def card() -> DatasetCard:
    return DatasetCard("card", "card", 10.0, (CameraInfo("image", *SIDES),), ActionSpec.unknown(2, 10.0))


def write(folder: Path, episodes: int = 20) -> Path:
    """As RLVR-World's npz episodes."""
    writer = registry.get("formats", "oxe-npz").create(folder, card())
    for index in range(episodes):
        writer.commit(writer.stage(episode(index)))
    writer.finalize(card())
    return folder
