"""A dream without a network: the picture slides as the action says. For tests of everything around a world model."""

from __future__ import annotations

import numpy as np

from worldsim.core.types import ActionSpec, CameraInfo, DatasetCard, Episode, FrameStream
from worldsim.data.scenes import Scene, SceneSpec
from worldsim.envs.dream import Imagine, Setting

SIDE, FRAMES, EPISODES = 32, 6, 3


class Blocks:
    """Three episodes of coloured blocks with a planar state, actions absolute targets."""

    def __init__(self) -> None:
        spec = ActionSpec(("x", "y"), ("px", "px"), mode="absolute", space="planar", frame="image", rate=10.0)
        self.card = DatasetCard(
            "blocks", "memory", 10.0, (CameraInfo("top", SIDE, SIDE),), actions=spec, state_names=("x", "y")
        )

    def __len__(self) -> int:
        return EPISODES

    def ids(self) -> list[str]:
        return [f"blocks_{k}" for k in range(EPISODES)]

    def episode(self, index: int) -> Episode:
        rng = np.random.default_rng(index)
        picture = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)
        frames = np.stack([np.roll(picture, k, axis=1) for k in range(FRAMES)])
        rows = np.stack([np.arange(FRAMES), np.zeros(FRAMES)], axis=1).astype(np.float32)
        return Episode(
            self.ids()[index],
            index,
            "memory",
            10.0,
            {"top": FrameStream.of(frames)},
            actions=rows + 1,
            states=rows,
            instruction="slide the blocks",
        )

    def close(self) -> None:
        """Nothing is open."""


def slide(scene: Scene, context: np.ndarray, rows: np.ndarray, seed: int, past: np.ndarray | None) -> np.ndarray:
    """The last frame, moved by each action's x and y pixels."""
    out = [context[-1]]
    for row in rows:
        out.append(np.roll(out[-1], (round(float(row[1])), round(float(row[0]))), axis=(0, 1)))
    return np.stack(out[1:])


def twin() -> tuple[Imagine, Setting]:
    low, high = np.full(2, -7.0, np.float32), np.full(2, 7.0, np.float32)
    setting = Setting(Blocks(), range(EPISODES), SceneSpec("top", 1, history=2), low, high, follows=True)
    return slide, setting
