"""The film of a run: camera | nearest training frame of the predicted token | joint traces, from the log alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worldsim.data import robot_log as logs
from worldsim.report.video import BACKGROUND, GAP, INK, enlarged, label_bar, write_mp4

COLOURS = ((86, 156, 214), (220, 120, 90), (120, 190, 110), (200, 130, 200), (220, 190, 80), (90, 190, 190))
WIDTH, HEIGHT = 320, 240
LONGEST = 3000
"""Frames in a film; of a longer run the first."""


def make(
    episode: Path, head: logs.Head, out: Path, pictures: np.ndarray | None = None, grid: Sequence[int] = (1, 1)
) -> int:
    """Write ``out`` (H.264) and return its number of frames.

    Args:
        pictures: uint8 ``[N, h, w, 3]``, the training frame nearest to each token; None without a tokenizer.
        grid: rows and columns of a frame's tokens, row by row.
    """
    steps = logs.read_steps(episode)[:LONGEST]
    if not steps:
        return 0
    columns = [_camera(episode, camera, steps, head.cameras[camera]) for camera in sorted(head.cameras)]
    if pictures is not None and any("future" in step for step in steps):
        horizon = next(len(step["future"]) for step in steps if "future" in step)
        labels = ["token now", f"predicted, +{horizon / head.fps:.1f} s"]
        for label, key in zip(labels, ("token", "future")):
            columns.append(_labelled(label, _tokens([step.get(key) for step in steps], pictures, grid)))
    columns.append(
        _labelled("joints: state, and what was " + ("sent" if head.done == "sent" else "wished"), _traces(steps, head))
    )
    gap = np.full((len(steps), columns[0].shape[1], GAP, 3), BACKGROUND, np.uint8)
    write_mp4(out, np.concatenate([part for column in columns for part in (column, gap)][:-1], axis=2), head.fps)
    return len(steps)


def _camera(episode: Path, camera: str, steps: list[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
    stream = logs.frames(episode, camera, steps, size)
    return _labelled(camera, np.concatenate([_fitted(block) for block in stream.blocks()]))


def _fitted(frames: np.ndarray) -> np.ndarray:
    """``[T, HEIGHT, w, 3]``: small pictures by repeating pixels, large ones made smaller."""
    frames = enlarged(frames, HEIGHT)
    width = max(2, round(frames.shape[2] * HEIGHT / frames.shape[1] / 2) * 2)
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, HEIGHT))) for frame in frames])


def _labelled(label: str, frames: np.ndarray) -> np.ndarray:
    bar = np.repeat(label_bar(label, frames.shape[2])[None], len(frames), axis=0)
    return np.concatenate([bar, frames], axis=1)


def _tokens(values: list[Any], pictures: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """The picture of a step's tokens ``[P]`` (or of the last of ``[K, P]``), grey where it has none."""
    shown: list[np.ndarray] = []
    blank = np.full((grid[0] * pictures.shape[1], grid[1] * pictures.shape[2], 3), 90, np.uint8)
    for value in values:
        if value is None:
            shown.append(blank)
            continue
        tokens = np.asarray(value).reshape(-1, grid[0], grid[1])[-1]
        rows = [np.concatenate([pictures[token] for token in row], axis=1) for row in tokens]
        shown.append(np.concatenate(rows, axis=0))
    return _fitted(np.stack(shown))


def _traces(steps: list[dict[str, Any]], head: logs.Head) -> np.ndarray:
    """``[T, HEIGHT, WIDTH, 3]``: every joint over its own range, up to now; the state pale, the action bright."""
    names = head.action_spec.names
    at = [head.state_names.index(name) if name in head.state_names else None for name in names]
    key = "sent" if head.done == "sent" else "wish"
    full, marks = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND), []
    draw, font = ImageDraw.Draw(full), ImageFont.load_default(size=10)
    left, band = 4, HEIGHT / len(names)
    x = np.linspace(left, WIDTH - 4, max(len(steps), 2))
    for k, name in enumerate(names):
        acted = np.array([step[key][k] if step.get(key) is not None else np.nan for step in steps], np.float64)
        place = at[k]
        state = np.full(len(steps), np.nan) if place is None else np.array([step["state"][place] for step in steps])
        both = np.concatenate([acted, state])
        both = both[np.isfinite(both)]
        low, high = (both.min(), both.max()) if len(both) else (0.0, 1.0)
        span = max(high - low, 1.0)  # a joint that rests is a line, not noise blown up
        for values, colour in ((state, tuple(c // 2 for c in COLOURS[k % 6])), (acted, COLOURS[k % 6])):
            y = (k + 1) * band - 3 - (values - low) / span * (band - 8)
            points = [(a, b) for a, b in zip(x, y) if np.isfinite(b)]
            if len(points) > 1:
                draw.line(points, fill=colour, width=1)
        marks.append((left + 2, k * band + 1, f"{name.removesuffix('.pos')} {low:.0f} to {high:.0f}"))
    drawn, base = np.asarray(full), _named(Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND), marks, font)
    frames = []
    for t in range(len(steps)):
        frame, cursor = base.copy(), int(x[t])
        ink = (drawn[:, : cursor + 1] != BACKGROUND).any(-1)
        frame[:, : cursor + 1][ink] = drawn[:, : cursor + 1][ink]
        frame[:, cursor] = (120, 120, 128)
        frames.append(frame)
    return np.stack(frames)


def _named(image: Image.Image, marks: list[tuple[float, float, str]], font: Any) -> np.ndarray:
    draw = ImageDraw.Draw(image)
    for x, y, text in marks:
        draw.text((x, y), text, fill=tuple(c * 2 // 3 for c in INK), font=font)
    return np.asarray(image)
