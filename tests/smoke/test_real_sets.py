"""The published sample sets through ``worldsim convert``: what fits is carried without loss, what does not fit is refused.

Rows come back bit by bit in every format; frames come back bit by bit through HDF5 and npz, and above 35 dB through video
and JPEG.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldsim.core.types import Episode
from worldsim.formats import open_dataset

BRIDGE, TABLE, GR1, BINS = "bridge_rlds", "irasim_languagetable", "lerobot_v20_gr1_sim", "lapa"
EXACT = {"act-hdf5", "oxe-npz"}
FITS = {
    BRIDGE: ["bridge", "lapa", "act-hdf5", "oxe-npz", "lerobot"],
    TABLE: ["bridge", "act-hdf5", "oxe-npz", "lerobot"],
    GR1: ["act-hdf5", "oxe-npz"],
}
"""GR1 to LeRobot v3.0 is tested with the LeRobot format."""
REFUSED = {
    (BRIDGE, "rlds"): "rlds is read only",
    (TABLE, "rlds"): "rlds is read only",
    (GR1, "rlds"): "rlds is read only",
    **{(name, "robot-log"): "robot-log is read only" for name in (BRIDGE, TABLE, GR1)},
    (TABLE, "lapa"): "lapa needs 7-D delta end-effector actions with a gripper channel; this dataset's actions are 2-D",
    (GR1, "lapa"): "lapa needs 7-D delta end-effector actions with a gripper channel; this dataset's actions are 44-D",
    (GR1, "bridge"): "this dataset has 44 state values that are not named so and 44-D actions",
}
EPISODES = {BRIDGE: "0:3", TABLE: "0:1", GR1: "0:1"}
Run = Callable[..., tuple[int, str, str]]


def psnr(frames: np.ndarray, truth: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((frames.astype(np.float64) - truth) ** 2), 1e-9)))


def same_rows(name: str, back: np.ndarray | None, truth: np.ndarray | None) -> None:
    assert (back is None) == (truth is None), name
    if back is not None and truth is not None:
        assert back.dtype == truth.dtype, name
        assert back.tobytes() == truth.tobytes(), name


def compare(back: Episode, truth: Episode, target: str) -> None:
    same_rows("actions", back.actions, truth.actions)
    if target == "oxe-npz":  # RLVR-World's files hold pictures and actions; what is left out is a note
        truth = replace(truth, states=None)
    same_rows("states", back.states, truth.states)
    assert (back.instruction, back.num_frames, back.fps) == (truth.instruction, truth.num_frames, truth.fps)
    assert len(back.frames) == len(truth.frames)
    for (name, stream), original in zip(sorted(back.frames.items()), (truth.frames[k] for k in sorted(truth.frames))):
        frames, picture = stream.read(), original.read()
        assert frames.shape == picture.shape
        if target in EXACT:
            np.testing.assert_array_equal(frames, picture, name)
        else:
            assert psnr(frames, picture) > 35, name


@pytest.mark.parametrize(("name", "target"), [(name, target) for name, targets in FITS.items() for target in targets])
def test_fits(shared_data: Path, worldsim: Run, tmp_path: Path, name: str, target: str) -> None:
    truth = open_dataset(shared_data / name)
    words = ["convert", shared_data / name, "--to", target, "--out", tmp_path / "out", "--json"]
    words += ["--episodes", EPISODES[name]]
    cameras = truth.card.camera_names
    if target == "oxe-npz" and len(cameras) > 1:  # its files hold one camera
        cameras = cameras[:1]
    code, out, err = worldsim(*words)
    assert code == 0, err
    report = json.loads(out)
    assert report["metrics"]["rejected"] == []
    for note in truth.card.notes:
        assert note in report["notes"]
    source = open_dataset(tmp_path / "out")
    assert source.card.format == target
    assert source.card.actions == truth.card.actions
    assert source.card.state_names == (None if target == "oxe-npz" else truth.card.state_names)
    for index in range(len(source)):
        compare(source.episode(index), truth.episode(index).only(cameras), target)
    assert worldsim(*words)[0] == 0  # again: nothing left to do, and no harm


@pytest.mark.parametrize(("name", "target"), REFUSED)
def test_refused(shared_data: Path, worldsim: Run, tmp_path: Path, name: str, target: str) -> None:
    code, out, err = worldsim("convert", shared_data / name, "--to", target, "--out", tmp_path / "out")
    assert code == 1
    assert out == ""
    assert REFUSED[name, target] in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "worldsim.json").exists()


def test_every_pair_is_decided() -> None:
    from worldsim.core import registry

    every = {(name, target) for name in FITS for target in registry.names("formats")}
    decided = {(name, target) for name, targets in FITS.items() for target in targets} | set(REFUSED)
    assert every - decided == {(GR1, "lerobot")}
    assert not decided - every


def test_a_table_of_bins_is_no_dataset(shared_data: Path, worldsim: Run, tmp_path: Path) -> None:
    code, _, err = worldsim("convert", shared_data / BINS, "--from", "lapa", "--out", tmp_path / "out")
    assert code == 1
    assert "simpler.csv is a table of action bins, not episodes" in err
    code, _, err = worldsim("convert", shared_data / BINS, "--out", tmp_path / "out2")
    assert code == 1
    assert "holds no dataset in a known format" in err


def test_there_and_back(shared_data: Path, worldsim: Run, tmp_path: Path) -> None:
    """RLDS through Bridge, LAPA and HDF5 in turn, each reading what the one before wrote: the rows are still the source's."""
    truth = open_dataset(shared_data / BRIDGE)
    at: Path = shared_data / BRIDGE
    for step, target in enumerate(("bridge", "lapa", "act-hdf5", "bridge")):
        out = tmp_path / f"{step}-{target}"
        words = ["convert", at, "--to", target, "--out", out, "--episodes", "0:2"]
        words += [] if step else ["--cameras", "image_0"]
        code, _, err = worldsim(*words)
        assert code == 0, err
        at = out
    source = open_dataset(at)
    assert source.card.actions == truth.card.actions
    for index in range(2):
        back, original = source.episode(index), truth.episode(index)
        same_rows("actions", back.actions, original.actions)
        same_rows("states", back.states, original.states)
        for name in ("language_embedding", "reward", "is_first"):
            same_rows(name, back.extras[name], original.extras[name])
        assert back.instruction == original.instruction
        assert psnr(next(iter(back.frames.values())).read(), original.frames["image_0"].read()) > 33


def test_remarks_of_a_reader_about_one_episode_are_notes(worldsim: Run, tmp_path: Path) -> None:
    """A video that is longer than its annotation is used, and said."""
    from tests.unit.test_bridge import annotate, video

    for name, count in (("1", 10), ("2", 13)):
        annotate(tmp_path / "bridge", "test", name)
        video(tmp_path / "bridge/videos/test" / name / "rgb.mp4", count)
    code, out, err = worldsim("convert", tmp_path / "bridge", "--out", tmp_path / "out", "--json")
    assert code == 0, err
    assert any(note.startswith("episode 2: rgb.mp4 holds more frames") for note in json.loads(out)["notes"])
