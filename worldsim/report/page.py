"""The report of ``eval video``: one folder with ``index.html`` and ``clips/``, to open from a disk or to publish as it is.

Nothing is fetched from a network and no path leads out of the folder, so it can be moved and mailed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from worldsim.core.files import write_text
from worldsim.report.curves import Line, chart
from worldsim.report.strip import ERROR_GAIN, difference, moments_of, strip
from worldsim.report.video import BACKGROUND, enlarged, write_mp4, write_png

TEMPLATES = Path(__file__).parent / "templates"
CLIP_PIXELS = 192
"""Short side of a film on the page; smaller frames are enlarged by whole factors."""
BLOCK_GAP = 14
"""Pixels between two episodes of a contact sheet."""
STRIP_PIXELS = 140
"""Width of a picture in a strip, at most, where the frames allow it."""


@dataclass(frozen=True)
class Column:
    """One metric of the summary table: its unit and which direction is better (``higher`` or ``lower``)."""

    name: str
    title: str
    unit: str
    better: str


@dataclass(frozen=True)
class Cell:
    """One number with its interval; NaN is shown as a dash. ``missing``: frames without a value."""

    mean: float
    low: float
    high: float
    missing: int = 0


@dataclass(frozen=True)
class Row:
    """One row of the summary table. ``key`` names its colour; ``about`` explains it in words."""

    key: str
    label: str
    about: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Tile:
    """A headline number: ``tone`` is ``good``, ``bad`` or ``plain``."""

    title: str
    value: str
    text: str
    tone: str = "plain"


@dataclass(frozen=True)
class Chart:
    """A chart beside those of the metrics."""

    title: str
    text: str
    unit: str
    lines: Sequence[Line]


@dataclass
class Shown:
    """One episode on the page. ``films`` and ``picture`` are names inside the report folder.

    ``traces``: label of a film -> SVG of the actions that it was made with; ``fps`` and ``horizon`` are the films'.
    """

    title: str
    text: str
    films: dict[str, str] = field(default_factory=dict)
    picture: str = ""
    traces: dict[str, str] = field(default_factory=dict)
    fps: float = 10.0
    horizon: int = 1


@dataclass
class Page:
    """Everything that the page shows.

    Attributes:
        title, subtitle: headings.
        alarms: sentences shown loudly at the top.
        tiles: headline numbers.
        columns, rows: the summary table.
        curves: metric name -> lines over predicted frames. charts: further ones, shown before these.
        shown: episodes with films.
        shown_text: which episodes these are. action_names: of the lines in their traces, in order.
        notes: remarks.
        definitions: how the numbers were made, as (word, sentence).
        files: (relative path, what it is): what lies beside the report.
        config: the run's config as YAML text. provenance: (word, value) pairs.
        contact: the sheet of pictures beside the page, by name.
    """

    title: str
    subtitle: str
    alarms: Sequence[str]
    tiles: Sequence[Tile]
    columns: Sequence[Column]
    rows: Sequence[Row]
    curves: Mapping[str, Sequence[Line]]
    shown: Sequence[Shown]
    shown_text: str
    notes: Sequence[str]
    definitions: Sequence[tuple[str, str]]
    config: str
    provenance: Sequence[tuple[str, str]]
    charts: Sequence[Chart] = ()
    action_names: Sequence[str] = ()
    contact: str | None = None


def render(page: Page, folder: Path) -> Path:
    """Write ``folder/index.html``; the films and pictures it names must lie there (:func:`film_episode`)."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    charts = [{"title": c.title, "text": c.text, "svg": chart(c.lines, c.unit, c.title)} for c in page.charts]
    charts += [
        {
            "title": f"{column.name} {'↑' if column.better == 'higher' else '↓'}",
            "text": column.title,
            "svg": chart(page.curves[column.name], column.unit, f"{column.title} by predicted frame"),
        }
        for column in page.columns
        if column.name in page.curves
    ]
    path = folder / "index.html"
    write_text(path, environment.get_template("eval_video.html.j2").render(page=page, charts=charts))
    return path


def film_episode(folder: Path, name: str, films: Mapping[str, np.ndarray], fps: float) -> tuple[dict[str, str], str]:
    """Write an episode's films and its strip of pictures.

    Args:
        name: file name stem. films: label -> uint8 ``[1 + n, H, W, 3]`` with the given frame first; ``truth`` and
            ``prediction`` are among them. fps: playback rate.

    Returns:
        label -> path relative to ``folder``, and the strip's path.
    """
    out = {}
    for label, frames in films.items():
        relative = f"clips/{name}_{label.replace(' ', '_')}.mp4"
        if not (folder / relative).exists():
            write_mp4(folder / relative, enlarged(frames, CLIP_PIXELS), fps)
        out[label] = relative
    picture = f"clips/{name}_strip.png"
    if not (folder / picture).exists():
        write_png(folder / picture, strip_of(films))
    return out, picture


def strip_of(films: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows of pictures: every film, then the difference between prediction and truth; uint8 ``[H', W', 3]``.

    Small frames are enlarged until seven moments fill the page's width; large ones show five.
    """
    rows = dict(films)
    rows[f"|error| x{ERROR_GAIN}"] = difference(films["prediction"], films["truth"])
    height, width = films["truth"].shape[1:3]
    factor = max(1, STRIP_PIXELS // width)
    moments = moments_of(len(films["truth"]) - 1, 7 if width * factor <= STRIP_PIXELS else 5)
    return strip(rows, moments, least=min(height, width) * factor)


def contact_sheet(episodes: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """For a README: the same rows of several episodes below each other, uint8 ``[H', W', 3]``.

    Args:
        episodes: each label -> uint8 ``[1 + n, H, W, 3]`` with the given frame first, all of one size and length.
    """
    frames = next(iter(episodes[0].values()))
    height, width = frames.shape[1:3]
    factor = max(1, STRIP_PIXELS // width)
    moments = moments_of(len(frames) - 1, 9 if width * factor <= STRIP_PIXELS else 5)
    sheets = [strip(rows, moments, least=min(height, width) * factor) for rows in episodes]
    gap = np.full((BLOCK_GAP, sheets[0].shape[1], 3), BACKGROUND, np.uint8)
    return np.concatenate([part for sheet in sheets for part in (sheet, gap)][:-1], axis=0)


def number(value: float) -> str:
    """Two decimals from 1 on, three or four below; a dash for NaN."""
    if value is None or np.isnan(value):
        return "–"
    digits = 2 if abs(value) >= 1 else 3 if abs(value) >= 0.1 else 4
    return f"{value:.{digits}f}" if value else "0"


def table_text(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The summary table for a terminal."""
    head = ["", *(f"{c.name} ({c.unit})" if c.unit != "1" else c.name for c in columns)]
    lines = [head] + [
        [row.label, *(number(row.cells[c.name].mean) if c.name in row.cells else "–" for c in columns)] for row in rows
    ]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join(
        "  ".join(word.ljust(w) if k == 0 else word.rjust(w) for k, (word, w) in enumerate(zip(line, widths)))
        for line in lines
    )
