"""The film of a run: camera | nearest training frame of the predicted token | joint traces, from the log alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worldsim.core.types import BLOCK_FRAMES
from worldsim.data import robot_log as logs
from worldsim.data.video import VideoWriter
from worldsim.report.video import BACKGROUND, GAP, INK, enlarged, label_bar

COLOURS = ((86, 156, 214), (220, 120, 90), (120, 190, 110), (200, 130, 200), (220, 190, 80), (90, 190, 190))
WIDTH, HEIGHT = 320, 240
CURSOR = (120, 120, 128)


def make(
    episode: Path, head: logs.Head, out: Path, pictures: np.ndarray | None = None, grid: Sequence[int] = (1, 1)
) -> int:
    """Write ``out`` (H.264), a block of frames at a time; returns their number.

    Args:
        pictures: uint8 ``[N, h, w, 3]``, the training frame nearest to each token; None without a tokenizer.
        grid: rows and columns of a frame's tokens, row by row.
    """
    steps = logs.read_steps(episode)
    traces = Traces(steps, head)
    with ExitStack() as stack:
        writer = None
        for at in range(0, len(steps), BLOCK_FRAMES):
            block = steps[at : at + BLOCK_FRAMES]
            columns = [_camera(episode, camera, block, head.cameras[camera]) for camera in sorted(head.cameras)]
            if pictures is not None and any("future" in step for step in steps):
                columns += _thoughts(block, head.fps, pictures, grid)
            columns.append(_labelled(traces.title, traces.frames(at, at + len(block))))
            gap = np.full((len(block), columns[0].shape[1], GAP, 3), BACKGROUND, np.uint8)
            frames = np.concatenate([part for column in columns for part in (column, gap)][:-1], axis=2)
            if writer is None:
                writer = stack.enter_context(VideoWriter(out, head.fps, *frames.shape[1:3]))
            writer.write(frames)
    return len(steps)


def _thoughts(block: list[dict[str, Any]], fps: float, pictures: np.ndarray, grid: Sequence[int]) -> list[np.ndarray]:
    """What the policy saw as a token, and the last one that it predicted."""
    horizon = next((len(step["future"]) for step in block if "future" in step), 1)
    shown = {"token": "nearest to the token", "future": f"predicted, +{horizon / fps:.1f} s"}
    return [_labelled(text, _tokens([step.get(key) for step in block], pictures, grid)) for key, text in shown.items()]


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
    """The pictures of a step's tokens ``[P]`` (or of the last of ``[K, P]``) in their places, grey where it has none."""
    shown: list[np.ndarray] = []
    for value in values:
        if value is None:
            shown.append(np.full((grid[0] * pictures.shape[1], grid[1] * pictures.shape[2], 3), 90, np.uint8))
            continue
        tokens = np.asarray(value).reshape(-1, grid[0], grid[1])[-1]
        rows = [np.concatenate([pictures[token] for token in row], axis=1) for row in tokens]
        shown.append(np.concatenate(rows, axis=0))
    return _fitted(np.stack(shown))


class Traces:
    """Every joint over its own range, up to now: the state pale, the action bright."""

    def __init__(self, steps: list[dict[str, Any]], head: logs.Head) -> None:
        names, sent = head.action_spec.names, head.done == "sent"
        self.title = "joints: state, and what was " + ("sent" if sent else "wished")
        rows = _columns([step.get("sent" if sent else "wish") for step in steps], len(names))
        states = _columns([step["state"] for step in steps], len(head.state_names))
        self.x = np.linspace(4, WIDTH - 4, max(len(steps), 2))
        lines, band, marks = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND), HEIGHT / len(names), []
        for k, name in enumerate(names):
            state = states[:, head.state_names.index(name)] if name in head.state_names else np.full(len(steps), np.nan)
            known = np.concatenate([rows[:, k], state])
            known = known[np.isfinite(known)]
            low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
            for values, colour in ((state, tuple(c // 2 for c in COLOURS[k % 6])), (rows[:, k], COLOURS[k % 6])):
                # A joint that rests is a line, not its noise blown up.
                y = (k + 1) * band - 3 - (values - low) / max(high - low, 1.0) * (band - 8)
                points = [(a, b) for a, b in zip(self.x, y) if np.isfinite(b)]
                if len(points) > 1:
                    ImageDraw.Draw(lines).line(points, fill=colour, width=1)
            marks.append((6.0, k * band + 1, f"{name.removesuffix('.pos')} {low:.0f} to {high:.0f}"))
        self.lines, self.base = np.asarray(lines), _named(Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND), marks)

    def frames(self, start: int, stop: int) -> np.ndarray:
        """``[stop - start, HEIGHT, WIDTH, 3]``."""
        out = np.repeat(self.base[None], stop - start, axis=0)
        for frame, cursor in zip(out, self.x[start:stop].astype(int)):
            past = self.lines[:, : cursor + 1]
            ink = (past != BACKGROUND).any(-1)
            frame[:, : cursor + 1][ink] = past[ink]
            frame[:, cursor] = CURSOR
        return out


def _columns(values: list[Any], width: int) -> np.ndarray:
    """``[T, width]`` float64, NaN where a step has none."""
    return np.array([np.full(width, np.nan) if value is None else value for value in values], np.float64).reshape(-1, width)


def _named(image: Image.Image, marks: list[tuple[float, float, str]]) -> np.ndarray:
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=10)
    for x, y, text in marks:
        draw.text((x, y), text, fill=tuple(c * 2 // 3 for c in INK), font=font)
    return np.asarray(image)
