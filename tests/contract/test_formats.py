"""Every registered format, by the same rules: frame t meets action t, rows keep their bits, and nothing is half-written.

A new format file is tested by being there. What it can hold, its own ``lacks`` says.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import painted
from worldsim.core import registry
from worldsim.core.config import load_recipe
from worldsim.core.errors import UserError
from worldsim.core.files import TEMPORARY, read_json
from worldsim.core.task import Task
from worldsim.core.types import ActionSpec, DatasetCard, Episode, FrameStream
from worldsim.data.windows import WindowSpec, cut_actions, frame_rows, starts
from worldsim.formats import detect, open_dataset
from worldsim.worker import execute

POSE = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
SIZE = (64, 128)
TWO = ("cam_front", "cam_top")
NAMES = registry.names("formats")


def spec(fps: float = 10.0) -> ActionSpec:
    units = ("m", "m", "m", "rad", "rad", "rad", "1")
    return ActionSpec(POSE, units, "delta", "end-effector", "base", gripper=6, gripper_open=1.0, rate=fps)


def card(cameras: tuple[str, ...]) -> DatasetCard:
    """A dataset that every format can hold but for the number of cameras: an arm with a gripper."""
    return replace(painted.card(cameras, SIZE), actions=spec(), state_names=POSE)


def episode(index: int, cameras: tuple[str, ...], rows: int | None = None, dtype: type = np.float32) -> Episode:
    """Frame t of episode k shows ``1000 * k + t``; ``actions[t][0] == t``; the gripper opens and closes."""
    made = painted.episode(index, 12 + index, cameras, SIZE, rows=rows)
    gripper = (np.arange(12 + index) // 4 % 2).astype(dtype)
    made.actions, made.states = made.actions.astype(dtype), made.states.astype(dtype)
    made.actions[:, 6], made.states[:, 6] = gripper[: len(made.actions)], gripper
    return made


class Source:
    """Painted episodes as an open dataset; ``change`` may spoil them."""

    def __init__(self, count: int = 3, cameras: tuple[str, ...] = TWO, change=lambda made: made) -> None:
        self.count, self.cameras, self.change, self.card = count, cameras, change, card(cameras)

    def __len__(self) -> int:
        return self.count

    def ids(self) -> list[str]:
        return [f"episode_{k:06d}" for k in range(self.count)]

    def episode(self, index: int) -> Episode:
        return self.change(episode(index, self.cameras))

    def close(self) -> None:
        pass


def cameras_of(name: str) -> tuple[str, ...] | None:
    """The cameras of the arm's dataset that the format holds: two, one, or None when it cannot be written."""
    format = registry.get("formats", name)
    return next((cameras for cameras in (TWO, TWO[:1]) if format.lacks(card(cameras)) is None), None)


WRITABLE = [name for name in NAMES if cameras_of(name) is not None]
writable = pytest.mark.parametrize("name", WRITABLE)


def convert(source: Any, to: str, out: Path, monkeypatch: pytest.MonkeyPatch, **values: Any) -> dict[str, Any]:
    """``worldsim convert`` through the worker, from an open source or a folder."""
    config = {**load_recipe("convert", None)[1], "to": to, **values}
    if isinstance(source, Path):
        config["source"] = str(source)
    else:
        config["source"] = "painted"
        monkeypatch.setattr("worldsim.commands.convert._open", lambda folder, config: source)
    return execute(Task("convert", config, str(out), device="cpu"))


def leftovers(out: Path) -> list[str]:
    return [p.relative_to(out).as_posix() for p in out.rglob("*") if TEMPORARY in p.as_posix()]


def check(back: Episode, truth: Episode, at: int) -> None:
    """Frame t of ``back`` shows t and lies beside action t; ``at`` is the number painted into its first frame."""
    assert back.num_frames == truth.num_frames
    assert back.actions.dtype == truth.actions.dtype
    np.testing.assert_array_equal(back.actions, truth.actions)
    for stream in back.frames.values():
        shown = [painted.read_index(frame) for frame in stream.read()]
        assert shown == list(range(at, at + truth.num_frames))
        assert [painted.read_index(frame) for frame in stream.rows([truth.num_frames - 1, 0])] == [shown[-1], shown[0]]
        window = WindowSpec(frames=3, stride=2)
        for start in starts(back.num_frames, window):
            cut = cut_actions(back.actions, start, window)[:, :, 0]
            np.testing.assert_array_equal(cut[:, 0] + at, [shown[row] for row in frame_rows(start, window)[:-1]])


def test_every_format_says_whether_it_can_be_written():
    assert set(NAMES) >= {"act-hdf5", "bridge", "lapa", "lerobot", "oxe-npz", "rlds"}
    assert set(NAMES) - set(WRITABLE) == {"rlds", "robot-log"}
    for name in NAMES:
        format = registry.get("formats", name)
        if name not in WRITABLE:
            assert name in format.lacks(card(TWO[:1]))
        assert not format.detect(Path("/nowhere/at/all"))


@writable
@pytest.mark.parametrize(("short", "dtype"), [(0, np.float32), (1, np.float64)])
def test_round_trip(name, short, dtype, tmp_path):
    cameras = cameras_of(name)
    truth = [episode(k, cameras, rows=12 + k - short, dtype=dtype) for k in range(3)]
    format = registry.get("formats", name)
    writer = format.create(tmp_path / "d", card(cameras))
    for made in truth:
        assert not writer.has(made.index)
        writer.commit(writer.stage(made))
        assert writer.has(made.index)
    writer.finalize(card(cameras))
    assert leftovers(tmp_path / "d") == []
    assert detect(tmp_path / "d") == name
    source = open_dataset(tmp_path / "d")
    assert (len(source), len(set(source.ids())), source.card.fps) == (3, 3, 10.0)
    assert source.card.camera_names == list(cameras)
    assert [(c.height, c.width) for c in source.card.cameras] == [SIZE] * len(cameras)
    assert source.card.actions.dim == 7
    backs = {back.provenance["original_id"]: back for back in map(source.episode, range(3))}
    for made in truth:
        back = backs[made.id]
        check(back, made, 1000 * made.index)
        assert (back.fps, back.instruction) == (made.fps, made.instruction)
        if back.states is not None:
            assert back.states.dtype == made.states.dtype
            np.testing.assert_array_equal(back.states, made.states)
        for camera in cameras:
            error = back.frames[camera].read().astype(float) - made.frames[camera].read()
            assert 10 * np.log10(255**2 / max(np.mean(error**2), 1e-9)) > 33
    source.close()


@writable
def test_discard_leaves_nothing(name, tmp_path):
    cameras = cameras_of(name)
    writer = registry.get("formats", name).create(tmp_path / "d", card(cameras))
    before = sorted(tmp_path.rglob("*"))
    writer.discard(writer.stage(episode(0, cameras)))
    assert [p for p in sorted(tmp_path.rglob("*")) if p.is_file()] == [p for p in before if p.is_file()]
    assert not writer.has(0)


@writable
def test_a_killed_stage_is_not_seen_and_is_swept(name, tmp_path):
    """A stage without its commit is what ``kill -9`` leaves."""
    cameras = cameras_of(name)
    format = registry.get("formats", name)
    writer = format.create(tmp_path / "d", card(cameras))
    writer.commit(writer.stage(episode(0, cameras)))
    writer.stage(episode(1, cameras))
    again = format.create(tmp_path / "d", card(cameras))
    assert (again.has(0), again.has(1)) == (True, False)
    again.finalize(card(cameras))
    assert leftovers(tmp_path / "d") == []
    assert len(open_dataset(tmp_path / "d")) == 1


def nan_action(made: Episode) -> Episode:
    made.actions[5, 2] = np.nan
    return made


def wide_action(made: Episode) -> Episode:
    return replace(made, actions=np.repeat(made.actions, 2, axis=1))


def no_camera(made: Episode) -> Episode:
    return replace(made, frames={"another": made.frames["cam_front"]})


def lost_frames(made: Episode) -> Episode:
    def cut() -> Iterator[np.ndarray]:
        yield stream.read()[:7]
        raise UserError("videos/file-000.mp4 is truncated")

    stream = made.frames["cam_front"]
    return replace(made, frames={**made.frames, "cam_front": FrameStream(stream.num_frames, *SIZE, cut)})


def black(made: Episode) -> Episode:
    dark = FrameStream.of(np.zeros((made.num_frames, *SIZE, 3), np.uint8))
    return replace(made, frames=dict.fromkeys(made.frames, dark))


FAULTS = {
    nan_action: "actions of painted/1 has nan in row 5, column 2",
    wide_action: "the actions of painted/1 have shape (13, 14); the dataset's are 7 wide",
    no_camera: "painted/1 lacks camera 'cam_front'",
    lost_frames: "videos/file-000.mp4 is truncated",
    black: "no camera of painted/1 shows anything",
}


@writable
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_bad_episode_is_named_and_the_good_ones_are_finished(name, fault, tmp_path, monkeypatch):
    cameras = cameras_of(name)
    source = Source(3, cameras, lambda made: fault(made) if made.index == 1 else made)
    with pytest.raises(UserError, match=r"^1 of 3 episodes were rejected, the first is episode_000001: ") as caught:
        convert(source, name, tmp_path / "d", monkeypatch)
    assert FAULTS[fault] in caught.value.sentence
    assert caught.value.exit_code == 1
    result = read_json(tmp_path / "d/result.json")
    assert [bad["episode"] for bad in result["metrics"]["rejected"]] == ["episode_000001"]
    assert result["status"] != "done"
    assert leftovers(tmp_path / "d") == []
    back = open_dataset(tmp_path / "d")
    assert sorted(back.episode(k).provenance["original_id"] for k in range(len(back))) == [
        "episode_000000",
        "episode_000002",
    ]
    with pytest.raises(UserError, match="1 of 3 episodes were rejected"):  # the same command says so again
        convert(source, name, tmp_path / "d", monkeypatch)
    assert convert(source, name, tmp_path / "d", monkeypatch, max_rejected=1)["status"] == "done"


@writable
def test_an_unknown_option_is_named(name, tmp_path, monkeypatch):
    source = Source(1, cameras_of(name))
    with pytest.raises(UserError, match=r"^unknown key 'writer\.flter'"):
        convert(source, name, tmp_path / "d", monkeypatch, writer={"flter": "gzip"})


@contextmanager
def quota(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes in this process: writing more fails as on a full disk (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def noisy(made: Episode) -> Episode:
    """Frames that no codec makes small, so that every format meets the quota."""
    rng = np.random.default_rng(made.index)
    return replace(
        made,
        frames={c: FrameStream.of(rng.integers(0, 256, (made.num_frames, *SIZE, 3), np.uint8)) for c in made.frames},
    )


@writable
def test_a_full_disk_is_one_sentence_and_the_same_command_continues(name, tmp_path, monkeypatch):
    source = Source(2, cameras_of(name), noisy)
    with quota(6000), pytest.raises(UserError, match="no space left to write") as caught:
        convert(source, name, tmp_path / "d", monkeypatch)
    assert caught.value.command.startswith("df -h")
    assert leftovers(tmp_path / "d") == []
    assert [p for p in tmp_path.rglob("*") if p.suffix in (".h5", ".npz", ".mp4", ".parquet")] == []
    assert convert(source, name, tmp_path / "d", monkeypatch)["status"] == "done"
    assert len(open_dataset(tmp_path / "d")) == 2


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The arm's dataset in every writable format."""
    out = {}
    for name in WRITABLE:
        out[name] = tmp_path_factory.mktemp("formats") / name
        writer = registry.get("formats", name).create(out[name], card(cameras_of(name)))
        for k in range(2):
            writer.commit(writer.stage(episode(k, cameras_of(name))))
        writer.finalize(card(cameras_of(name)))
    return out


@writable
@pytest.mark.parametrize("to", NAMES)
def test_any_to_any(name, to, written, tmp_path, monkeypatch):
    """What can hold the data takes all of it with frame t beside action t; what cannot says what is missing."""
    with open_source(written[name]) as source:
        read, reason = source.card, registry.get("formats", to).lacks(source.card)
    plugin = registry.get("formats", to)
    if hasattr(plugin, "keeps") and len(read.cameras) == 2:  # it chooses a camera when the user did not, and says so
        assert plugin.keeps(read) == ["cam_front"]
        reason, values = plugin.lacks(replace(read, cameras=read.cameras[:1])), {}
    elif reason is not None and len(read.cameras) == 2 and to in WRITABLE:
        with pytest.raises(UserError, match=f"cannot become {to}: .*--cameras"):
            convert(written[name], to, tmp_path / "refused", monkeypatch)
        reason = registry.get("formats", to).lacks(replace(read, cameras=read.cameras[:1]))
        values = {"cameras": "cam_front"}
    else:
        values = {}
    if reason is not None:
        with pytest.raises(UserError) as caught:
            convert(written[name], to, tmp_path / "d", monkeypatch, **values)
        assert reason in caught.value.sentence
        assert {p.name for p in (tmp_path / "d").iterdir()} <= {"config.yaml", "result.json", "provenance.json"}
        return
    convert(written[name], to, tmp_path / "d", monkeypatch, **values)
    with open_source(tmp_path / "d") as source:
        assert source.card.format == to
        backs = {back.provenance["original_id"]: back for back in map(source.episode, range(2))}
        for k in range(2):
            check(backs[f"episode_{k:06d}"], episode(k, TWO), 1000 * k)


@contextmanager
def open_source(path: Path) -> Iterator[Any]:
    source = open_dataset(path)
    try:
        yield source
    finally:
        source.close()


def test_reasons_are_sentences_about_this_dataset():
    """Nothing is padded or invented: 2-D actions, 44 joints and no cameras are refused where they do not fit."""
    arm = card(TWO[:1])
    humanoid = replace(arm, actions=ActionSpec.unknown(44, 10.0), state_names=tuple(f"s{k}" for k in range(44)))
    planar = replace(arm, actions=ActionSpec.unknown(2, 10.0), state_names=None)
    blind = replace(arm, cameras=())
    for name, dataset, words in (
        ("bridge", humanoid, "44-D actions"),
        ("lapa", humanoid, "44-D"),
        ("lapa", planar, "2-D"),
        *((name, blind, "camera") for name in WRITABLE),
    ):
        assert words in registry.get("formats", name).lacks(dataset), name
