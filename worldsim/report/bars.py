"""Rates with their intervals as a picture: one line per policy, a dot at the rate, a bar over its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, LINE, LABEL, RIGHT, TOP, BOTTOM = 760, 34, 250, 96, 14, 50
GROUND, INK, SOFT, RULE, ACCENT = (255, 255, 255), (29, 31, 36), (100, 104, 114), (225, 225, 221), (37, 99, 201)


@dataclass(frozen=True)
class Bar:
    """``rate``, ``low`` and ``high`` in 0..1, NaN where nothing is known; ``text`` stands at the right."""

    label: str
    rate: float
    low: float
    high: float
    text: str


def bars(lines: Sequence[Bar], title: str) -> np.ndarray:
    """uint8 ``[H, W, 3]``; the axis always runs from 0 to 100 %."""
    height = TOP + LINE * len(lines) + BOTTOM
    image = Image.new("RGB", (WIDTH, height), GROUND)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=13)

    def x(share: float) -> float:
        return LABEL + (WIDTH - LABEL - RIGHT) * share

    for tick in (0, 0.25, 0.5, 0.75, 1):
        draw.line([(x(tick), TOP), (x(tick), height - BOTTOM)], fill=RULE)
        draw.text((x(tick), height - BOTTOM + 4), f"{tick:.0%}", fill=SOFT, font=font, anchor="ma")
    draw.text((WIDTH - 8, height - 4), title, fill=SOFT, font=font, anchor="rd")
    for k, line in enumerate(lines):
        middle = TOP + LINE * (k + 0.5)
        draw.text((LABEL - 10, middle), _short(draw, line.label, font), fill=INK, font=font, anchor="rm")
        draw.text((WIDTH - RIGHT + 10, middle), line.text, fill=INK, font=font, anchor="lm")
        if not math.isnan(line.rate):
            draw.rounded_rectangle([x(line.low), middle - 4, x(line.high), middle + 4], 4, fill=(168, 195, 238))
            draw.ellipse([x(line.rate) - 5, middle - 5, x(line.rate) + 5, middle + 5], fill=ACCENT)
    return np.asarray(image)


def _short(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The end of a long path says more than its beginning."""
    while len(text) > 2 and draw.textlength(text, font=font) > LABEL - 20:
        text = "…" + text[2:]
    return text
