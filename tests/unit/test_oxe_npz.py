"""oxe-npz: exactly the two arrays RLVR-World reads, written as a stream; its own files are read without a card."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import painted
from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.types import DatasetCard, Episode
from worldsim.formats import detect, open_dataset
from worldsim.formats.oxe_npz import OxeNpz

CARD = painted.card(cameras=("cam_top",))


def one(index: int = 0, num_frames: int = 12, **options) -> Episode:
    return painted.episode(index, num_frames, cameras=("cam_top",), **options)


def write(path: Path, episodes: list[Episode], card: DatasetCard = CARD, **options) -> Path:
    writer = OxeNpz.create(path, card, **options)
    for episode in episodes:
        writer.commit(writer.stage(episode))
    writer.finalize(card)
    return path


def theirs(folder: Path, name: str, num_frames: int = 5, **arrays) -> np.ndarray:
    """A file as RLVR-World's converter writes it; returns its frames."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = np.stack([painted.paint(t) for t in range(num_frames)])
    arrays = {"image": frames, "action": np.ones((num_frames, 13), np.float32), **arrays}
    np.savez_compressed(folder / name, **arrays)
    return frames


def test_files_hold_exactly_what_the_reference_reads(tmp_path):
    episode = replace(one(7, 19), split="test")
    write(tmp_path / "d", [one(), episode], replace(CARD, name="fractal/v 1"))
    names = sorted(p.relative_to(tmp_path / "d").as_posix() for p in (tmp_path / "d").rglob("*"))
    assert names == [
        "fractal_v_1",
        "fractal_v_1/test_eps_00000007.npz",
        "fractal_v_1/train_eps_00000000.npz",
        "worldsim.json",
    ]
    with np.load(tmp_path / "d" / names[1], allow_pickle=False) as arrays:
        assert sorted(arrays) == ["action", "image"]
        assert (arrays["image"].dtype, arrays["image"].shape) == (np.uint8, (19, 64, 128, 3))
        np.testing.assert_array_equal(arrays["image"], episode.frames["cam_top"].read())
        np.testing.assert_array_equal(arrays["action"], episode.actions)


@pytest.mark.parametrize(
    ("name", "key"), [("viola", "agentview_rgb"), ("taco_play", "rgb_static"), ("bridge_dataset", "image")]
)
def test_the_array_of_frames_has_the_data_sets_display_key(tmp_path, name, key):
    path = write(tmp_path / "d", [one()], replace(CARD, name=name)) / name / "train_eps_00000000.npz"
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays) == sorted([key, "action"])
    assert open_dataset(tmp_path / "d").card.camera_names == ["cam_top"]


@pytest.mark.parametrize("rows", [12, 11])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_and_frames_are_bit_equal(tmp_path, rows, dtype):
    episode = one(rows=rows)
    episode.actions = episode.actions.astype(dtype)
    back = open_dataset(write(tmp_path / "d", [episode])).episode(0)
    assert back.actions.dtype == dtype
    np.testing.assert_array_equal(back.actions, episode.actions)
    np.testing.assert_array_equal(back.frames["cam_top"].read(), episode.frames["cam_top"].read())
    assert (back.instruction, back.fps, back.states) == (episode.instruction, episode.fps, None)
    assert back.provenance["original_id"] == episode.id


def test_equal_episodes_give_equal_bytes(tmp_path, monkeypatch):
    first = write(tmp_path / "a", [one()])
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    second = write(tmp_path / "b", [one()])
    for file in ("painted/train_eps_00000000.npz", "worldsim.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()


def test_the_display_key_can_be_named(tmp_path):
    write(tmp_path / "d", [one()], image_key="rgb_static")
    with np.load(tmp_path / "d/painted/train_eps_00000000.npz") as arrays:
        assert sorted(arrays) == ["action", "rgb_static"]
    assert open_dataset(tmp_path / "d").card.camera_names == ["cam_top"]
    with pytest.raises(UserError, match=r"writer.image_key"):
        OxeNpz.create(tmp_path / "e", CARD, image_key="action")


def test_what_is_missing_and_what_is_left_out_is_said():
    assert OxeNpz.lacks(CARD) is None
    assert OxeNpz.lacks(painted.card()) == (
        "oxe-npz holds exactly one camera; choose one with --cameras (there are: cam_front, cam_top)"
    )
    assert OxeNpz.lacks(replace(CARD, actions=None)) == "oxe-npz needs actions and the dataset has none"
    assert OxeNpz.drops(replace(CARD, extras=("reward",))) == [
        "oxe-npz does not hold states (7 columns), 'reward'; left out"
    ]
    assert OxeNpz.drops(replace(CARD, state_names=None)) == []


@pytest.mark.parametrize("place", [".", "fractal20220817_data"])
def test_their_files_are_read_and_the_rate_follows_from_the_name(tmp_path, place):
    folder = tmp_path / "fractal20220817_data"
    frames = theirs(folder, "train_eps_00000011.npz")
    theirs(folder, "test_eps_00000002.npz")
    path = tmp_path if place == "." else folder
    assert detect(path) == "oxe-npz"
    source = open_dataset(path)
    assert source.ids() == ["test_eps_00000002", "train_eps_00000011"]
    assert (source.card.name, source.card.fps) == ("fractal20220817_data", 3.0)
    assert source.card.notes == ["fractal20220817_data: npz files do not say their fps; 3 is its published rate"]
    assert source.card.splits == {"test": ["test_eps_00000002"], "train": ["train_eps_00000011"]}
    assert source.card.actions.dim == 13
    np.testing.assert_array_equal(source.episode(1).frames["image"].read(), frames)
    assert (source.episode(1).states, source.episode(1).instruction) == (None, None)


def test_an_unknown_set_is_ten_said_aloud_and_fps_overrides(tmp_path):
    theirs(tmp_path / "mine", "train_eps_00000000.npz")
    assert open_dataset(tmp_path).card.notes == ["mine: npz files do not say their fps; 10 is a guess (--fps overrides)"]
    assert (open_dataset(tmp_path, fps=25.0).card.fps, open_dataset(tmp_path, fps=25.0).card.notes) == (25.0, [])


def test_two_sets_in_one_folder_are_listed(tmp_path):
    theirs(tmp_path / "a", "train_eps_00000000.npz")
    theirs(tmp_path / "b", "train_eps_00000000.npz")
    with pytest.raises(UserError, match="there are: a, b"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path / "b")) == 1


def test_broken_files_are_named_and_the_others_go_on(tmp_path):
    theirs(tmp_path / "d", "train_eps_00000000.npz")
    data = (tmp_path / "d/train_eps_00000000.npz").read_bytes()
    (tmp_path / "d/train_eps_00000001.npz").write_bytes(data[: len(data) // 2])
    (tmp_path / "d/train_eps_00000002.npz").write_bytes(data[:9000] + b"\xff" * 40 + data[9040:])  # frames
    (tmp_path / "d/train_eps_00000005.npz").write_bytes(data[:100] + b"\xff" * 40 + data[140:])  # the array's header
    np.savez_compressed(tmp_path / "d/train_eps_00000003.npz", action=np.ones((3, 2)))
    np.savez_compressed(tmp_path / "d/train_eps_00000004.npz", image=np.array([None]), action=np.ones((3, 2)))
    source = open_dataset(tmp_path)
    assert source.episode(0).num_frames == 5
    for index, reason in (
        (1, "cannot be read"),
        (3, "0 arrays of uint8 frames"),
        (4, "cannot be read"),
        (5, "cannot be read"),
    ):
        with pytest.raises(BadEpisode, match=reason):
            source.episode(index)
    with pytest.raises(BadEpisode, match=r"train_eps_00000002\.npz cannot be read"):
        source.episode(2).frames["image"].read()


def test_the_comment_replaces_a_lost_card(tmp_path):
    write(tmp_path / "d", [replace(one(fps=4.0), success=False)], replace(CARD, fps=4.0))
    (tmp_path / "d/worldsim.json").unlink()
    episode = open_dataset(tmp_path / "d").episode(0)
    assert (episode.fps, episode.success, episode.instruction) == (4.0, False, "task 0")
    with zipfile.ZipFile(tmp_path / "d/painted/train_eps_00000000.npz") as archive:
        assert archive.testzip() is None


def test_an_interrupted_run_has_what_was_committed_whatever_its_split(tmp_path):
    writer = OxeNpz.create(tmp_path / "d", CARD)
    writer.commit(writer.stage(replace(one(3), split="test")))
    writer.stage(one(4))
    again = OxeNpz.create(tmp_path / "d", CARD)
    assert [again.has(index) for index in (3, 4, 30)] == [True, False, False]
    assert [p.name for p in (tmp_path / "d/painted").iterdir()] == ["test_eps_00000003.npz"]
