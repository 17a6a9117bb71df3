"""Line charts as PNG, for reports that are read as Markdown: curves with bands, axes, legend; drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worldsim.report.video import write_png

SCALE = 2
"""Drawn at this many times the size that it is meant to be shown at."""
WIDTH, HEIGHT = 620, 340
LEFT, RIGHT, TOP, BOTTOM = 66, 16, 40, 46
DASH = 5.0
"""Pixels of a dash, and of the gap after it."""
PAPER, INK, SOFT, RULE = (255, 255, 255), (29, 31, 36), (100, 104, 114), (228, 228, 224)
COLOURS = (
    (37, 99, 201),
    (194, 112, 13),
    (23, 128, 74),
    (138, 79, 192),
    (194, 58, 58),
    (0, 139, 139),
    (128, 132, 142),
    (170, 60, 120),
)


@dataclass(frozen=True)
class Curve:
    """Points ``x``, ``y`` ``[n]`` (NaN leaves a gap), with a band where ``low`` and ``high`` are given."""

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dashed: bool = False
    colour: int = 0


def plot(path: Path, curves: Sequence[Curve], title: str, x_label: str, y_label: str = "", *, log: bool = False) -> None:
    """Write a chart.

    Args:
        log: y on a logarithmic axis, where every value is positive.
    """
    write_png(path, drawn(curves, title, x_label, y_label, log=log))


def drawn(curves: Sequence[Curve], title: str, x_label: str, y_label: str = "", *, log: bool = False) -> np.ndarray:
    """The chart as uint8 ``[H, W, 3]``."""
    values = np.concatenate(
        [np.asarray(part, np.float64) for c in curves for part in (c.y, c.low, c.high) if part is not None]
    )
    values = values[np.isfinite(values)]
    log = log and bool(len(values)) and bool((values > 0).all())
    rows = -(-len(curves) // 4)
    height = HEIGHT + 18 * rows
    axes = _Axes(curves, values, log, height - BOTTOM - 18 * rows)
    image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), PAPER)
    draw = ImageDraw.Draw(image)
    _text(draw, LEFT, 14, title, 14, INK, "lm")
    _frame(draw, axes, x_label, y_label)
    for curve in curves:
        _band(image, curve, axes)
    draw = ImageDraw.Draw(image)
    for curve in curves:
        _line(draw, curve, axes)
    for k, curve in enumerate(curves):
        x, y = LEFT + (k % 4) * 136, axes.bottom + 42 + 18 * (k // 4)
        _stroke(draw, (x, y), (x + 20, y), curve, 0.0)
        _text(draw, x + 24, y, curve.label, 11, SOFT, "lm")
    return np.asarray(image)


class _Axes:
    """From values to pixels."""

    def __init__(self, curves: Sequence[Curve], values: np.ndarray, log: bool, bottom: int) -> None:
        xs = np.concatenate([np.asarray(c.x, np.float64) for c in curves]) if curves else np.zeros(1)
        self.x0, self.x1 = (float(xs.min()), float(xs.max())) if len(xs) else (0.0, 1.0)
        self.log, self.bottom = log, bottom
        self.ticks = _log_ticks(values) if log else _ticks(values)
        ends = [math.log10(t) for t in (self.ticks[0], self.ticks[-1])] if log else [self.ticks[0], self.ticks[-1]]
        self.y0, self.y1 = ends

    def x(self, value: float) -> float:
        span = self.x1 - self.x0
        return LEFT + (WIDTH - LEFT - RIGHT) * ((value - self.x0) / span if span else 0.5)

    def y(self, value: float) -> float:
        at = math.log10(value) if self.log else value
        return self.bottom - (self.bottom - TOP) * (at - self.y0) / (self.y1 - self.y0)


def _ticks(values: np.ndarray) -> list[float]:
    """About five round numbers that hold all values."""
    least, most = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if most - least < 1e-12:
        pad = abs(most) * 0.1 or 0.5
        least, most = least - pad, most + pad
    raw = (most - least) / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [k * step for k in range(math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9) + 1)]


def _log_ticks(values: np.ndarray) -> list[float]:
    """1, 2 and 5 times powers of ten that hold all values."""
    every = [m * 10.0**p for p in range(-12, 13) for m in (1, 2, 5)]
    low = max((t for t in every if t <= values.min()), default=every[0])
    high = min((t for t in every if t >= values.max()), default=every[-1])
    found = [t for t in every if low <= t <= high]
    found = found if len(found) > 1 else [low, every[every.index(low) + 1]]
    return found[:: max(1, len(found) // 6)] + ([found[-1]] if (len(found) - 1) % max(1, len(found) // 6) else [])


def _frame(draw: ImageDraw.ImageDraw, axes: _Axes, x_label: str, y_label: str) -> None:
    for tick in axes.ticks:
        y = axes.y(tick)
        draw.line(_scaled([(LEFT, y), (WIDTH - RIGHT, y)]), fill=RULE, width=SCALE)
        _text(draw, LEFT - 8, y, f"{tick:.4g}", 11, SOFT, "rm")
    for value in _x_ticks(axes):
        _text(draw, axes.x(value), axes.bottom + 12, f"{value:g}", 11, SOFT, "mm")
    _text(draw, WIDTH - RIGHT, axes.bottom + 26, x_label, 11, SOFT, "rm")
    _text(draw, LEFT, 32, y_label, 11, SOFT, "lm")


def _x_ticks(axes: _Axes) -> list[float]:
    span = axes.x1 - axes.x0
    if span and span == int(span) and axes.x0 == int(axes.x0):
        step = max(1, math.ceil(span / 8))
        return [axes.x0 + k for k in range(0, int(span) + 1, step)]
    return [t for t in _ticks(np.array([axes.x0, axes.x1])) if axes.x0 <= t <= axes.x1]


def _band(image: Image.Image, curve: Curve, axes: _Axes) -> None:
    if curve.low is None or curve.high is None or len(curve.x) < 2 or not np.isfinite([curve.low, curve.high]).all():
        return
    there = [(axes.x(a), axes.y(b)) for a, b in zip(curve.x, curve.high)]
    back = [(axes.x(a), axes.y(b)) for a, b in zip(curve.x, curve.low)]
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).polygon(_scaled(there + back[::-1]), fill=38)
    image.paste(_colour(curve), mask=mask)


def _line(draw: ImageDraw.ImageDraw, curve: Curve, axes: _Axes) -> None:
    points = [(axes.x(a), axes.y(b)) if np.isfinite(b) else None for a, b in zip(curve.x, curve.y)]
    travelled = 0.0
    for a, b in pairwise(points):
        if a and b:
            travelled = _stroke(draw, a, b, curve, travelled)
    if len(points) <= 24 and (not curve.dashed or len(points) == 1):  # one point has no line
        for point in points:
            if point:
                (x, y), r = _scaled([point])[0], 2.5 * SCALE
                draw.ellipse((x - r, y - r, x + r, y + r), fill=_colour(curve))


def _stroke(
    draw: ImageDraw.ImageDraw, a: tuple[float, float], b: tuple[float, float], curve: Curve, travelled: float
) -> float:
    """A straight line, in dashes where the curve is dashed; ``travelled`` is how far the curve had come, returned anew."""
    length = math.dist(a, b)
    edges = [0.0, length]
    if curve.dashed:
        turns = [k * DASH - travelled for k in range(int((travelled + length) / DASH) + 1)]
        edges = [0.0, *(turn for turn in turns if 0 < turn < length), length]
    for start, end in pairwise(edges):
        if curve.dashed and int((travelled + (start + end) / 2) / DASH) % 2:
            continue
        ends = (
            [(a[0] + (b[0] - a[0]) * d / length, a[1] + (b[1] - a[1]) * d / length) for d in (start, end)] if length else []
        )
        if ends:
            draw.line(_scaled(ends), fill=_colour(curve), width=2 * SCALE)
    return travelled + length


def _colour(curve: Curve) -> tuple[int, int, int]:
    return COLOURS[curve.colour % len(COLOURS)]


def _scaled(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x * SCALE, y * SCALE) for x, y in points]


def _text(
    draw: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int, fill: tuple[int, int, int], anchor: str
) -> None:
    draw.text((x * SCALE, y * SCALE), text, fill=fill, font=ImageFont.load_default(size=size * SCALE), anchor=anchor)
