"""Statistics, pictures, films and the page: known values, playable files, and a look through a real browser."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageFont
from scipy.stats import binomtest, permutation_test

from worldsim.commands._eval_alarms import alarm
from worldsim.core.errors import UserError
from worldsim.data.predictions import Prediction, file_names, load, marks, save
from worldsim.data.scenes import partners, scene_seed
from worldsim.metrics.scoring import Summary
from worldsim.report import page as pages
from worldsim.report.curves import Line, chart
from worldsim.report.page import (
    Cell,
    Chart,
    Column,
    Page,
    Row,
    Shown,
    Tile,
    contact_sheet,
    film_episode,
    number,
    render,
    table_text,
)
from worldsim.report.statistics import flip_test, interval, permutation_gap, sign_test
from worldsim.report.strip import difference, moments_of, strip
from worldsim.report.trace import drawn, ranges, trace
from worldsim.report.video import enlarged, side_by_side, write_mp4


def clip(n: int = 9, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A bright square crossing a dark gradient, uint8 [n, H, W, 3]."""
    ground = np.linspace(20, 120, width, dtype=np.uint8)[None, :, None] * np.ones((height, 1, 3), np.uint8)
    frames = np.repeat(ground[None], n, axis=0)
    for t in range(n):
        left = 4 + (4 * t + 9 * seed) % (width - 20)
        frames[t, 16:32, left : left + 14] = (240, 180, 60)
    return frames


# --- statistics -------------------------------------------------------------------------------------------------------


def test_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for k in range(200):
        found = interval(rng.normal(3, 1, 30), seed=k, resamples=500)
        hits += found.low <= 3 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_interval_is_seeded_and_leaves_out_what_is_undefined() -> None:
    values = np.array([1.0, np.nan, 3.0, 2.0])
    assert interval(values, seed=1) == interval(values, seed=1)
    found = interval(values)
    assert (found.mean, found.count, found.missing) == (2.0, 3, 1)
    empty = interval(np.array([np.nan]))
    assert np.isnan(empty.mean)
    assert empty.count == 0


def test_interval_of_equal_episodes_has_no_width() -> None:
    found = interval(np.full(8, 2.5))
    assert (found.low, found.high) == (2.5, 2.5)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 0), (14, 2), (8, 8), (1, 15), (40, 20)])
def test_sign_test_equals_scipy(wins: int, losses: int) -> None:
    expected = binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_flip_test_equals_scipy(seed: int) -> None:
    """Exact up to 16 episodes; beyond, within the error of 20,000 draws; and never below one pattern's share."""
    gaps = np.random.default_rng(seed).normal(0.4, 1, 12)
    ask = {"permutation_type": "samples", "n_resamples": np.inf, "alternative": "greater", "vectorized": True}
    expected = permutation_test((gaps,), lambda x, axis: x.mean(axis=axis), **ask).pvalue
    assert flip_test(gaps) == pytest.approx(expected)
    more = np.tile(gaps, 2)
    assert flip_test(more) == pytest.approx(flip_test(more, seed=9), abs=0.02)
    assert flip_test(np.ones(5)) == 1 / 32
    assert flip_test(np.ones(40)) == pytest.approx(1 / 20001)
    assert flip_test(np.zeros(6)) == flip_test(np.empty(0)) == 1
    assert flip_test(-np.ones(8)) == 1


def test_few_episodes_prove_nothing() -> None:
    """Four of four wins is chance one time in sixteen, however narrow their interval is."""
    assert not permutation_gap(np.full(4, 2.0), np.zeros(4)).follows
    assert not permutation_gap(np.full(4, 2.0), np.zeros(4)).enough
    assert permutation_gap(np.full(5, 2.0), np.zeros(5)).follows


def test_permutation_gap_counts_wins_and_averages_permutations() -> None:
    own, other = np.array([5.0, 4, 3, 2]), np.array([[4.0, 5, 3, 1], [2.0, 5, 3, 1]])
    gap = permutation_gap(own, other)
    assert (gap.wins, gap.losses, gap.ties) == (2, 1, 1)
    assert gap.interval.mean == pytest.approx((2 - 1 + 0 + 1) / 4)
    assert permutation_gap(own, other, sign=-1).interval.mean == pytest.approx(-0.5)


def test_a_certain_gap_may_be_too_small() -> None:
    """Twenty of twenty episodes win, by a ten-thousandth of a decibel."""
    tiny = permutation_gap(np.full(20, 1e-4), np.zeros(20), least=0.1)
    assert tiny.certain
    assert not tiny.follows
    assert permutation_gap(np.full(20, 0.2), np.zeros(20), least=0.1).follows


@pytest.mark.parametrize(
    ("gap", "said"), [(-3.0, "WORSE WITH ITS OWN ACTIONS"), (1e-4, "HARDLY FOLLOWS"), (0.0, "IGNORES ITS ACTIONS")]
)
def test_the_alarm_says_what_is_wrong(gap: float, said: str) -> None:
    found = permutation_gap(np.full(20, gap), np.zeros(20), least=0.1)
    sentence = alarm(Summary({}, {}, found, "motion_psnr"))
    assert sentence is not None
    assert said in sentence


def test_gap_of_a_deaf_model_does_not_follow() -> None:
    own = np.random.default_rng(0).normal(size=16)
    assert not permutation_gap(own, own).follows
    assert permutation_gap(own, own).p == 1
    assert permutation_gap(own + 1, own).follows


@pytest.mark.parametrize("count", [2, 3, 16])
def test_partners_are_derangements_that_never_agree(count: int) -> None:
    all_of = [partners(count, k, seed=5) for k in range(count - 1)]
    for one in all_of:
        assert sorted(one) == list(range(count))
        assert all(mine != other for mine, other in enumerate(one))
    assert all(len({one[k] for one in all_of}) == count - 1 for k in range(count))


def test_scene_seed_depends_on_run_episode_and_frame() -> None:
    seeds = [scene_seed(*key) for key in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]]
    assert len(set(seeds)) == 4
    assert scene_seed(0, "a", 0) == seeds[0]


# --- predictions on disk ----------------------------------------------------------------------------------------------


def test_predictions_survive_the_disk_and_equal_ones_give_equal_bytes(tmp_path: Path) -> None:
    frames = clip()
    p = Prediction(
        episode="a/b 3",
        samples=np.stack([frames, clip(seed=1)]),
        actions=np.ones((8, 2, 3), np.float32),
        truth=frames,
        frame_index=4,
        fps=5.0,
        instruction="päck",
        permuted=frames[None],
        permuted_actions=np.zeros((1, 8, 2, 3), np.float32),
        permuted_episodes=["x"],
        reconstruction=frames,
    )
    save(tmp_path / "1.npz", p)
    time.sleep(2.1)  # zip files carry times in steps of two seconds
    save(tmp_path / "2.npz", p)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    back = load(tmp_path / "1.npz")
    for key, value in vars(p).items():
        assert np.array_equal(getattr(back, key), value), key


def test_what_takes_the_worth_from_a_score_is_marked(tmp_path: Path) -> None:
    plain = Prediction("e", clip(3)[None], np.zeros((2, 1, 3), np.float32), truth=clip(3))
    save(tmp_path / "plain.npz", plain)
    save(tmp_path / "told.npz", replace(plain, teacher_forced=True, trained_on=True))
    assert marks(tmp_path / "plain.npz") == set()
    assert marks(tmp_path / "told.npz") == {"teacher_forced", "trained_on"}
    back = load(tmp_path / "told.npz")
    assert (back.teacher_forced, back.trained_on) == (True, True)
    (tmp_path / "junk.npz").write_bytes(b"abc")
    for read in (load, marks):
        with pytest.raises(UserError, match="is no file of predicted frames") as error:
            read(tmp_path / "junk.npz")
        assert "pickle" not in error.value.sentence


def test_file_names_are_safe_and_unique() -> None:
    assert file_names(["a/1", "b", "a 1"]) == {"a/1": "a_1-0", "b": "b", "a 1": "a_1-2"}


# --- pictures and films -----------------------------------------------------------------------------------------------


def test_mp4_plays_in_browsers_and_is_deterministic(tmp_path: Path) -> None:
    """H.264 in 4:2:0 with its index in front, odd sizes padded, every frame there."""
    frames = clip(9, 45, 67)
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, frames, 7.0)
        time.sleep(1.1)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data == (tmp_path / "b.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    ask = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "a.mp4")]
    said = subprocess.run(ask, capture_output=True, text=True).stderr
    assert re.search(r"Video: h264 .*yuv420p.* 68x46.* 7 fps", said), said
    from worldsim.data.video import open_stream

    back = open_stream(tmp_path / "a.mp4").read()
    assert len(back) == 9
    assert np.abs(back[:, :45, :67].astype(int) - frames).mean() < 4


def test_enlarging_repeats_pixels() -> None:
    small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    big = enlarged(small, 5)
    assert big.shape == (6, 6, 3)
    assert np.array_equal(big[::3, ::3], small)
    assert np.array_equal(big[2, 2], small[0, 0])
    assert enlarged(big, 4) is big


def test_side_by_side_keeps_order_time_and_pixels() -> None:
    a, b = clip(5, 48, 64), clip(5, 48, 64, seed=2)
    film = side_by_side({"given": a[:1], "truth": a, "prediction": b}, least=48)
    assert film.shape == (5, 48 + 22, 3 * 64 + 2 * 4, 3)
    assert np.array_equal(film[3, 22:, :64], a[0])
    assert np.array_equal(film[3, 22:, 68:132], a[3])
    assert np.array_equal(film[3, 22:, 136:], b[3])
    assert film[0, :22, 68:132].max() > 200, "a label is written"


def test_strip_shows_the_chosen_moments() -> None:
    truth = clip(17, 96, 96)
    moments = moments_of(16)
    assert moments == [0, 3, 6, 10, 13, 16]
    picture = strip({"truth": truth, "prediction": truth}, moments, least=96)
    left = picture.shape[1] - 6 * (96 + 4)
    for k, moment in enumerate(moments):
        at = left + k * 100
        assert np.array_equal(picture[22 : 22 + 96, at : at + 96], truth[moment])
    assert moments_of(1) == [0, 1]


def test_difference_is_black_where_right() -> None:
    a = clip(2)
    assert not difference(a, a).any()
    b = a.copy()
    b[0, 0, 0] = a[0, 0, 0] + 10
    assert difference(b, a)[0, 0, 0].tolist() == [30, 30, 30]


def test_every_label_of_a_strip_has_a_glyph(monkeypatch) -> None:
    """The font knows few characters; what it lacks it draws as a box."""
    labels: list[str] = []
    monkeypatch.setattr(pages, "strip", lambda rows, *_, **__: labels.extend(rows) or np.zeros((1, 1, 3), np.uint8))
    pages.strip_of({"truth": clip(3), "prediction": clip(3)})
    font = ImageFont.load_default(size=11)
    box = bytes(font.getmask("\uffff"))
    assert labels[-1] == "|error| x3"
    assert all(bytes(font.getmask(letter)) != box for letter in "".join(labels) if letter != " ")


# --- the page ---------------------------------------------------------------------------------------------------------


def test_chart_puts_points_where_the_numbers_say() -> None:
    svg = chart([Line("model", "model", np.array([10.0, 20.0, np.nan, 30.0]))], "dB", "psnr")
    found = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert len(found) == 3, "an undefined value leaves a gap"
    (x1, y1), (x2, y2), (x4, y4) = found
    assert x2 - x1 == pytest.approx((x4 - x1) / 3, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y4, abs=0.2)
    assert y1 > y4, "up is more"


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [np.nan, 1e-5], [1e6, 2e6]])
def test_chart_survives_odd_values(values: list[float]) -> None:
    svg = chart([Line("model", "m", np.array(values))], "1", "x")
    assert "nan" not in svg.replace("<title>", "")


def make_page(folder: Path, alarm: str | None = None) -> Path:
    """A page of two episodes with real films, as eval video writes it."""
    columns = [Column("psnr", "Peak signal-to-noise ratio", "dB", "higher"), Column("mse", "Squared error", "1", "lower")]
    cell = {"psnr": Cell(21.234, 20.1, 22.2, 3), "mse": Cell(0.0123, 0.01, 0.02)}
    rows = [
        Row("model", "model", "the model", cell),
        Row("copy_last", "copy", "<b>not bold</b>", {"psnr": Cell(float("nan"), float("nan"), float("nan"))}),
    ]
    shown = []
    for k in range(2):
        films = {"truth": clip(9, seed=k), "prediction": clip(9, seed=k + 1), "other actions": clip(9, seed=k + 2)}
        names, picture = film_episode(folder, f"e{k}", films, 10.0)
        sent = np.sin(np.arange(16).reshape(8, 2, 1) / 3 + [0, 1 + k])
        svg = {label: trace(sent, [0, 1], *ranges([sent]), label) for label in films}
        shown.append(Shown(f"e{k}", "task", names, picture, svg, 10.0, 8))
    line = Line("model", "model", np.linspace(25, 18, 8), np.linspace(24, 16, 8), np.linspace(26, 20, 8))
    page = Page(
        title="A test",
        subtitle="two episodes",
        alarms=[alarm] if alarm else [],
        tiles=[Tile("PSNR", "21.2 dB", "text", "good")],
        columns=columns,
        rows=rows,
        curves={"psnr": [line]},
        shown=shown,
        shown_text="both",
        notes=["a note"],
        definitions=[("psnr", "as usual")],
        config="a: 1",
        provenance=[("model", "x")],
        charts=[Chart("permutation gap", "own minus other", "dB", [line])],
        action_names=["dx", "dy"],
    )
    return render(page, folder)


def test_page_is_self_contained_and_escapes(tmp_path: Path) -> None:
    path = make_page(tmp_path / "report", "IT IGNORES ITS ACTIONS")
    html = path.read_text()
    for link in re.findall(r'(?:src|href)="([^"]*)"', html):
        if link != "data:,":
            assert not link.startswith(("/", "http", "file:", "..")), link
            assert (path.parent / link).is_file(), link
    assert "http" not in html.replace("http-equiv", "")
    assert "&lt;b&gt;not bold" in html
    assert 'role="alert">IT IGNORES ITS ACTIONS' in html
    assert "21.23" in html
    assert "3 frames n/a" in html
    assert path.read_bytes() == make_page(tmp_path / "again", "IT IGNORES ITS ACTIONS").read_bytes()


def test_table_for_a_terminal_lines_up() -> None:
    columns = [Column("psnr", "", "dB", "higher")]
    rows = [
        Row("model", "model", "", {"psnr": Cell(9.5, 9, 10)}),
        Row("copy_last", "the copy", "", {"psnr": Cell(11, 9, 12)}),
    ]
    assert table_text(columns, rows).splitlines() == ["          psnr (dB)", "model          9.50", "the copy      11.00"]
    assert number(float("nan")) == "–"


KEYS = """<script>
const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const told = (name) => {
  const card = players[active].card;
  const shown = [card.querySelector("output").textContent, card.querySelector(".cursor").getAttribute("x1")];
  page.dataset[name] = [active, ...shown].join("|");
};
setTimeout(() => { press("ArrowRight"); told("one"); }, 500);
setTimeout(() => { press("ArrowRight"); press("x"); told("two"); }, 1500);
setTimeout(() => { press("ArrowLeft"); told("back"); }, 2500);
setTimeout(() => { press("j"); press("j"); told("next"); }, 3500);
setTimeout(() => { press(" "); page.dataset.playing = String(!players[1].lead.paused); press(" "); }, 4500);
setTimeout(() => {
  document.getElementById("theme").click();
  page.dataset.ground = getComputedStyle(document.body).backgroundColor;
}, 5500);
</script></body>"""
"""Presses keys in the page and writes down what it shows: episode, clock, cursor."""


def test_page_obeys_the_keyboard(tmp_path: Path, chromium: str) -> None:
    page = make_page(tmp_path / "report")
    page.write_text(page.read_text().replace("</body>", KEYS))
    done = browse(chromium, page, tmp_path / "profile", "--dump-dom")
    told = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<html[^>]*>", done.stdout)[0]))
    assert told["errors"] == "0", done.stderr
    assert told["one"] == "0|+1 / 8|37.5", "one frame on, and the cursor is where the first action has acted"
    assert told["two"] == "0|+2 / 8|75"
    assert told["back"] == "0|+1 / 8|37.5"
    assert told["next"] == "1|given / 8|0", "the last episode stays the last"
    assert told["playing"] == "true"
    assert told["theme"] == "dark"
    assert told["ground"] == "rgb(21, 22, 26)"


# --- traces and the sheet ---------------------------------------------------------------------------------------------


def test_a_trace_is_level_between_two_frames_and_ends_with_the_last_action() -> None:
    """Row t is a level from frame t to t + 1; the least value lies at the bottom, the greatest on top."""
    rows = np.array([[[0.0]], [[1.0]], [[0.5]]])
    svg = trace(rows, [0], np.array([0.0]), np.array([1.0]), "x")
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]*)"', svg)[1].split()]
    assert [x for x, _ in points] == [0, 100, 100, 200, 200, 300]
    assert [y for _, y in points] == [59, 59, 5, 5, 32, 32]


def test_traces_draw_what_varies_and_survive_what_does_not() -> None:
    rows = np.zeros((4, 1, 9))
    rows[:, 0, [1, 2, 4, 6, 7, 8]] = np.arange(24).reshape(4, 6)
    assert drawn([rows]) == [1, 2, 4, 6, 7, 8]
    assert drawn([rows[..., :3]]) == [0, 1, 2]
    assert "nan" not in trace(rows, [0], *ranges([rows]), "x")


def test_the_contact_sheet_stacks_episodes() -> None:
    one = {"truth": clip(9), "prediction": clip(9, seed=1), "copy": np.repeat(clip(1), 9, axis=0)}
    single, double = contact_sheet([one]), contact_sheet([one, one])
    assert double.shape[0] == 2 * single.shape[0] + 14
    assert np.array_equal(double[: len(single)], double[-len(single) :])


def browse(chromium: str, page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", f"--user-data-dir={profile}", "--virtual-time-budget=8000"]
    command += ["--enable-logging=stderr", "--hide-scrollbars", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_page_works_in_a_browser(tmp_path: Path, chromium: str) -> None:
    """From a file:// address: the films load and have a length, the script runs, and nothing is complained about."""
    page = make_page(tmp_path / "report")
    done = browse(chromium, page, tmp_path / "profile", "--dump-dom")
    root = re.search(r"<html[^>]*>", done.stdout)
    assert root, done.stderr
    assert 'data-videos="6"' in root[0]
    assert 'data-playable="6"' in root[0], root[0]
    assert 'data-errors="0"' in root[0]
    assert "given / 8" in done.stdout, "the clock counts imagined frames"
    assert "CONSOLE" not in done.stderr, done.stderr


def test_page_looks_like_something(tmp_path: Path, chromium: str) -> None:
    """A screenshot holds the films' colour, the curve's colour, text, and the alarm's ground."""
    page = make_page(tmp_path / "report", "IT IGNORES ITS ACTIONS")
    picture = tmp_path / "page.png"
    browse(chromium, page, tmp_path / "profile", f"--screenshot={picture}", "--window-size=1200,1700")
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert pixels.shape[:2] == (1700, 1200)
    for colour, name in [
        ((240, 180, 60), "film"),
        ((37, 99, 201), "curve or button"),
        ((29, 31, 36), "text"),
        ((251, 233, 231), "alarm"),
    ]:
        near = (np.abs(pixels - colour).sum(axis=-1) < 40).sum()
        assert near > 300, f"no {name} in the picture"
