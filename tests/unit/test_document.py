"""One source, two renderings and CSVs: the same numbers everywhere."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldsim.report.document import Code, Document, Facts, Figure, Grid, Section, Value, render
from worldsim.report.plots import PAPER, Curve, drawn, plot

GRID = Grid(
    "errors",
    ["arm", "MSE", "note"],
    [["A|x", Value(1 / 3, 0.25, 0.5), "plain"], ["B", Value(math.nan), None]],
    "A caption.",
)


def rendered(folder: Path) -> tuple[str, str]:
    blocks = [
        "A <b>paragraph</b>.",
        GRID,
        Figure("a.png", "picture"),
        Figure("a.mp4", "film"),
        Facts([("N", "64")]),
        Code("x --y"),
    ]
    page = render(Document("Title", "The lead.", [Section("4.1 Errors", blocks), Section("below", [], 3)], "sub"), folder)
    return (folder / "REPORT.md").read_text(), page.read_text()


def test_markdown_and_page_hold_the_same(tmp_path: Path) -> None:
    text, page = rendered(tmp_path)
    assert "## 4.1 Errors" in text
    assert "### below" in text
    assert "| A\\|x | 0.3333 [0.25 … 0.5] | plain |" in text
    assert "| B | – | – |" in text
    assert "![picture](a.png)" in text
    assert "[film](a.mp4)" in text
    for part in ("0.3333", "[0.25 … 0.5]", "A|x", '<img src="a.png"', '<video src="a.mp4"', "x --y", 'id="4-1-errors"'):
        assert part in page
    assert "<b>paragraph</b>" not in page, "text is escaped"


def test_csv_has_all_digits(tmp_path: Path) -> None:
    rendered(tmp_path)
    rows = list(csv.reader((tmp_path / "tables" / "errors.csv").open()))
    assert rows[0] == ["arm", "MSE", "MSE low", "MSE high", "note"]
    assert rows[1] == ["A|x", repr(1 / 3), "0.25", "0.5", "plain"]
    assert rows[2] == ["B", "", "", "", ""]


def pixels(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns that have exactly this colour, ``[n, 2]``."""
    return np.argwhere((image == np.array(colour)).all(-1))


@pytest.mark.parametrize("log", [False, True])
def test_a_larger_value_is_drawn_higher(log: bool) -> None:
    from worldsim.report.plots import COLOURS

    image = drawn([Curve("up", np.arange(1, 4), np.array([0.1, 1.0, 10.0]))], "t", "epoch", log=log)
    left, right = image[:, 130:200], image[:, 1000:1200]
    assert pixels(right, COLOURS[0])[:, 0].min() < pixels(left[:600], COLOURS[0])[:, 0].min()


def test_gaps_constants_and_bands_are_drawn(tmp_path: Path) -> None:
    x = np.arange(4)
    gap = Curve("gap", x, np.array([1.0, np.nan, 2.0, 3.0]), np.array([0.0, 1, 1, 2]), np.array([2.0, 3, 3, 4]), colour=1)
    flat = Curve("constant", x, np.full(4, 2.0), dashed=True, colour=2)
    plot(tmp_path / "a.png", [gap, flat], "title", "epoch")
    assert (np.asarray(Image.open(tmp_path / "a.png")) != PAPER).any()
    plot(tmp_path / "b.png", [Curve("none", x, np.full(4, np.nan))], "no value at all", "epoch", log=True)


def test_large_numbers_are_written_out() -> None:
    assert str(Value(12345.6, 999.5, 1.5e10)) == "12,346 [999.5 … 1.5e+10]"
    assert str(Value(0.00012345)) == "0.0001234"


def test_dashes_begin_with_ink_and_cover_half() -> None:
    from worldsim.report.plots import COLOURS, LEFT, SCALE

    flat = Curve("dashed", np.arange(50), np.full(50, 1.0), dashed=True)
    image = drawn([flat], "t", "step")
    row = max((line for line in image[: 2 * 330]), key=lambda line: (line == COLOURS[0]).all(-1).sum())
    inked = (row == COLOURS[0]).all(-1)
    assert inked[LEFT * SCALE + 1]
    assert 0.4 < inked[LEFT * SCALE :].mean() < 0.6


def test_a_dashed_curve_of_one_point_is_seen() -> None:
    """A run of one logged line has one training loss; it has no line to draw."""
    from worldsim.report.plots import COLOURS

    frame = Curve("frame", np.arange(3), np.array([0.0, 1.0, 2.0]))
    inked = [
        len(
            pixels(
                drawn([frame, Curve("dot", np.array([1.0]), np.array([value]), dashed=True, colour=1)], "t", "s"),
                COLOURS[1],
            )
        )
        for value in (0.3, np.nan)
    ]
    assert inked[0] > inked[1]
