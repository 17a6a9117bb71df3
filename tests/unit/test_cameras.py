"""Stacked cameras: in order, in step, each in its own share, however its reader cuts blocks."""

from __future__ import annotations

import numpy as np
import pytest

from tests import painted
from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.types import CameraInfo, Episode, FrameStream
from worldsim.data.cameras import camera_stream, require_cameras, split_names, stacked_info
from worldsim.data.scenes import SceneSpec, cut
from worldsim.data.transforms import Cover
from worldsim.data.video import VideoWriter, open_stream


def in_blocks(frames: np.ndarray, size: int) -> FrameStream:
    """A stream that hands over ``size`` frames at once and cannot seek."""
    return FrameStream(
        len(frames), *frames.shape[1:3], lambda: (frames[at : at + size] for at in range(0, len(frames), size))
    )


def robot(frames: int = 23) -> Episode:
    """Two cameras of different size whose readers cut blocks differently; both show the frame's number."""
    out = painted.episode(2, frames)
    front = np.stack([painted.paint(2000 + t, 64, 128, camera=0) for t in range(frames)])
    top = np.stack([painted.paint(2000 + t, 96, 128, camera=1) for t in range(frames)])
    out.frames = {"front": in_blocks(front, 7), "top": in_blocks(top, 5)}
    return out


@pytest.mark.parametrize("camera", ["front+top", "top+front"])
def test_both_cameras_are_in_step_and_in_the_order_they_are_named(camera):
    episode = robot()
    stream = camera_stream(episode, camera, 64, 64)
    assert stream.shape == (23, 64, 64, 3)
    whole = np.concatenate(list(stream.blocks()))
    assert whole.shape == stream.shape
    for at, name in enumerate(camera.split("+")):
        part = whole[:, 32 * at : 32 * (at + 1)]
        assert np.array_equal(part, Cover(32, 64).forward(episode.frames[name].read()))
    front = whole[:, :32] if camera.startswith("front") else whole[:, 32:]
    assert [painted.read_index(frame) for frame in front] == list(range(2000, 2023))
    wanted = [11, 3, 3, 22]
    assert np.array_equal(stream.rows(wanted), whole[wanted])


def test_one_camera_is_its_own_stream():
    episode = robot()
    assert camera_stream(episode, "top", 32, 32) is episode.frames["top"]
    episode.frames["a+b"] = episode.frames["top"]
    assert camera_stream(episode, "a+b", 32, 32) is episode.frames["top"]
    assert split_names("a+b", ["a", "b"]) == ["a", "b"]


def test_without_a_size_each_is_as_large_as_the_first():
    known = [CameraInfo("front", 64, 128), CameraInfo("top", 96, 128)]
    for camera, height in (("front+top", 128), ("top+front", 192)):
        assert camera_stream(robot(), camera).shape == (23, height, 128, 3)
        assert stacked_info(camera, known) == CameraInfo(camera, height, 128)


def test_a_scene_is_cut_from_the_stack_as_training_saw_it():
    episode = robot()
    spec = SceneSpec("top+front", frames=4, start=6, history=5, size=(96, 64))
    scene = cut(episode, spec, 2, np.zeros((4, 2, 7), np.float32))
    seen = camera_stream(episode, "top+front", 96, 64)
    assert np.array_equal(scene.context, seen.rows([0, 2, 4, 6]))
    assert np.array_equal(scene.truth, seen.rows([6, 8, 10, 12, 14]))


def test_wrong_stacks_are_one_sentence():
    episode = robot()
    with pytest.raises(BadEpisode, match="lacks camera 'wrist'"):
        camera_stream(episode, "front+wrist", 64, 64)
    with pytest.raises(UserError, match="height of 65 cannot be shared out evenly among the 2 stacked cameras front\\+top"):
        camera_stream(episode, "front+top", 65, 64)
    with pytest.raises(UserError, match="the set has no camera 'frnt'; did you mean 'front'"):
        require_cameras("frnt+top", ["front", "top"], "the set")
    with pytest.raises(UserError, match="'top' is named twice"):
        require_cameras("top+front+top", ["front", "top"], "the set")
    episode.frames["top"] = in_blocks(episode.frames["top"].read()[:20], 5)
    with pytest.raises(BadEpisode, match="'front' has 23, 'top' has 20 frames"):
        camera_stream(episode, "front+top", 64, 64)


def test_two_mp4s_stay_in_step(tmp_path):
    """Lossy files, decoded as LeRobot's and Bridge's are, one by blocks of 16 frames and one by blocks of 5."""
    episode = painted.episode(0, 40)
    for camera, name in enumerate(("front", "top")):
        with VideoWriter(tmp_path / f"{name}.mp4", 10, 64, 128) as writer:
            writer.write(np.stack([painted.paint(700 + t, 64, 128, camera) for t in range(40)]))
    front, top = (open_stream(tmp_path / f"{name}.mp4") for name in ("front", "top"))
    episode.frames = {"front": front, "top": in_blocks(top.read(), 5)}
    stream = camera_stream(episode, "top+front", 128, 128)
    whole = np.concatenate(list(stream.blocks()))
    for half in (slice(64), slice(64, 128)):
        assert [painted.read_index(frame[half]) for frame in whole] == list(range(700, 740))
    assert np.array_equal(stream.rows([39, 0, 7]), whole[[39, 0, 7]])
    assert np.array_equal(whole[4], np.concatenate([top.rows([4])[0], front.rows([4])[0]]))
