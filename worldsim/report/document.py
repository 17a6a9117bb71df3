"""A written report: headings, sentences, tables and pictures, rendered twice from one source: ``REPORT.md`` and ``index.html``.

Every table also goes to ``tables/<name>.csv`` with all its digits. Nothing is fetched from a network and no path leads out of
the folder, so that it can be moved and mailed.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from worldsim.core.files import write_text

TEMPLATES = Path(__file__).parent / "templates"
GENERAL, LARGE, LARGEST = ".4g", 1e3, 1e9
MARKDOWN, PAGE, TABLES = "REPORT.md", "index.html", "tables"


@dataclass(frozen=True)
class Value:
    """A number of a table, with its interval where it has one; None and NaN are shown as a dash.

    ``form``: how it is written, a format specification such as ``.4f`` or ``.1%``.
    """

    mean: float | None
    low: float | None = None
    high: float | None = None
    form: str = GENERAL

    @property
    def text(self) -> str:
        return written(self.mean, self.form)

    @property
    def range(self) -> str:
        """``[low … high]``; empty without an interval."""
        if missing(self.low) or missing(self.high):
            return ""
        return f"[{written(self.low, self.form)} … {written(self.high, self.form)}]"

    def __str__(self) -> str:
        return f"{self.text} {self.range}".rstrip()


@dataclass(frozen=True)
class Grid:
    """A table. ``name`` is its CSV's; the first column holds labels.

    Attributes:
        columns: titles. rows: cells, as many as titles: texts, :class:`Value` or None (shown as a dash).
        ranges: whether intervals are shown; the CSV has them anyway.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Value | None]]
    caption: str = ""
    ranges: bool = True


@dataclass(frozen=True)
class Figure:
    """A picture or film inside the report folder (``path`` ends in .png, .gif or .mp4)."""

    path: str
    caption: str

    @property
    def film(self) -> bool:
        return self.path.endswith(".mp4")


@dataclass(frozen=True)
class Facts:
    """(word, value) pairs."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Items:
    """A list with bullets."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Something to type, or a config."""

    text: str


Block = str | Grid | Figure | Facts | Items | Code
"""A paragraph is a plain text."""


@dataclass
class Section:
    """A heading (``level`` 2 or 3) and what stands below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    level: int = 2

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass
class Document:
    """A title, the one sentence that matters, and sections."""

    title: str
    lead: str
    sections: list[Section]
    subtitle: str = ""

    def grids(self) -> list[Grid]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Grid)]


def render(document: Document, folder: Path) -> Path:
    """Write ``REPORT.md``, ``index.html`` and ``tables/*.csv``; figures must lie in ``folder``. Returns the page's path."""
    for grid in document.grids():
        write_text(folder / TABLES / f"{grid.name}.csv", as_csv(grid))
    write_text(folder / MARKDOWN, as_markdown(document))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["kind"] = lambda block: type(block).__name__.lower()
    path = folder / PAGE
    write_text(path, environment.get_template("document.html.j2").render(document=document, tables=TABLES))
    return path


def as_markdown(document: Document) -> str:
    lines = [f"# {document.title}", ""]
    lines += [document.subtitle, ""] if document.subtitle else []
    lines += [f"**{document.lead}**", ""]
    for section in document.sections:
        lines += [f"{'#' * section.level} {section.title}", ""]
        for block in section.blocks:
            lines += [*_markdown(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown(block: Block) -> list[str]:
    match block:
        case Grid():
            head = ["| " + " | ".join(map(_cell, block.columns)) + " |"]
            rule = ["|" + "|".join([" --- ", *[" ---: "] * (len(block.columns) - 1)]) + "|"]
            rows = ["| " + " | ".join(_cell(cell, block.ranges) for cell in row) + " |" for row in block.rows]
            return [*head, *rule, *rows, *(["", f"*{block.caption}*"] if block.caption else [])]
        case Figure():
            return [f"[{block.caption}]({block.path})" if block.film else f"![{block.caption}]({block.path})"]
        case Facts():
            return [f"- {word}: {value}" for word, value in block.pairs]
        case Items():
            return [f"- {text}" for text in block.texts]
        case Code():
            return ["```", block.text.rstrip(), "```"]
    return [block]


def _cell(cell: str | Value | None, ranges: bool = True) -> str:
    text = cell.text if isinstance(cell, Value) and not ranges else str(cell)
    return "–" if cell is None else text.replace("|", "\\|")


def as_csv(grid: Grid) -> str:
    """All digits: a column with intervals becomes three, ``x``, ``x low`` and ``x high``; a missing number stays empty."""
    ranged = [any(_has_interval(row[k]) for row in grid.rows) for k in range(len(grid.columns))]
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(
        [
            name
            for title, r in zip(grid.columns, ranged)
            for name in ([title, f"{title} low", f"{title} high"] if r else [title])
        ]
    )
    for row in grid.rows:
        table.writerow([part for cell, r in zip(row, ranged) for part in _csv_cells(cell, r)])
    return out.getvalue()


def _has_interval(cell: str | Value | None) -> bool:
    return isinstance(cell, Value) and cell.low is not None


def _csv_cells(cell: str | Value | None, ranged: bool) -> list[str]:
    if isinstance(cell, Value):
        values = [cell.mean, cell.low, cell.high] if ranged else [cell.mean]
        return ["" if missing(value) else repr(float(value)) for value in values]  # type: ignore[arg-type]
    return ["" if cell is None else cell, *(["", ""] if ranged else [])]


def missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def written(value: float | None, form: str) -> str:
    """The number as the report writes it; a dash when there is none. Large ones are written out, not as powers of ten."""
    if value is not None and form == GENERAL and LARGE <= abs(value) < LARGEST:
        form = ",.0f"
    return "–" if value is None or math.isnan(value) else f"{value:{form}}"
