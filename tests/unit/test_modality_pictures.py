"""Pictures of predicted tokens: what stands beside what, read off painted frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.painted import paint, read_index
from worldsim.commands import _modality_pictures
from worldsim.commands._modality_pictures import fitted, imagination_film, imagination_strip, moments, panels

FRAMES = np.stack([paint(t, 64, 128) for t in range(20)])
STARTS = np.array([2, 3, 4, 5])
PREDICTED = np.stack([np.stack([paint(100 + 10 * t + k, 32, 64) for k in (1, 2, 3)]) for t in STARTS])
"""Smaller than the frames, and numbered by the window's t and how far ahead it is."""


def test_panels_show_now_the_last_prediction_and_the_frame_it_is_about() -> None:
    shown = panels(FRAMES, STARTS, PREDICTED)
    assert list(shown) == ["camera, now", "predicted token, +3", "camera, +3"]
    now, told, came = ([read_index(frame) for frame in part] for part in shown.values())
    assert now == [2, 3, 4, 5]
    assert told == [123, 133, 143, 153]
    assert came == [5, 6, 7, 8]
    assert {part.shape for part in shown.values()} == {(4, 64, 128, 3)}


def test_strip_sets_each_prediction_above_the_frame_that_came(tmp_path: Path, monkeypatch) -> None:
    seen = []
    plain = _modality_pictures.strip
    monkeypatch.setattr(
        _modality_pictures, "strip", lambda rows, at, least: seen.append((rows, at)) or plain(rows, at, least=least)
    )
    imagination_strip(tmp_path / "a.png", FRAMES, STARTS, PREDICTED)
    assert len(seen) == len(moments(4)) == 3
    for index, (rows, at) in zip(moments(4), seen):
        t = int(STARTS[index])
        assert at == [0, 1, 2, 3]
        assert [read_index(frame) for frame in rows["predicted token"]] == [t, *(100 + 10 * t + k for k in (1, 2, 3))]
        assert [read_index(frame) for frame in rows["what came"]] == [t, t + 1, t + 2, t + 3]
    assert Image.open(tmp_path / "a.png").height > 3 * 2 * 64


def test_film_and_gif_have_a_picture_per_window(tmp_path: Path) -> None:
    name = imagination_film(tmp_path, "film", FRAMES, STARTS, PREDICTED, 10.0)
    gif = Image.open(tmp_path / name)
    assert (gif.n_frames, gif.info["duration"]) == (4, 100)
    assert (tmp_path / "film.mp4").stat().st_size > 1000


def test_fitted_repeats_pixels() -> None:
    small = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(fitted(small, 4, 4), small.repeat(2, 1).repeat(2, 2))
