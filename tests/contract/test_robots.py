"""Every registered robot, through its tiny twin: LeRobot's contract, and the face that the loop drives."""

from __future__ import annotations

import numpy as np
import pytest
from lerobot.robots import Robot

from worldsim.core import registry
from worldsim.robots.lerobot import LeRobotArm


@pytest.fixture(params=registry.names("robots"))
def body(request: pytest.FixtureRequest):
    twin = registry.get("robots", request.param).tiny()
    body = LeRobotArm(twin, 10.0) if isinstance(twin, Robot) else twin
    yield body
    if body.robot.is_connected:
        body.disconnect()


def test_it_says_what_its_numbers_mean_before_it_is_connected(body):
    spec = body.action_spec
    assert not body.robot.is_connected
    assert spec.dim == len(spec.units) == body.action_space.shape[0]
    assert spec.rate == body.fps
    assert body.cameras


def test_what_is_seen_is_what_was_declared(body):
    body.connect()
    seen = body.observe()
    assert {name: frame.shape for name, frame in seen["pixels"].items()} == {
        name: (*size, 3) for name, size in body.cameras.items()
    }
    assert all(frame.dtype == np.uint8 for frame in seen["pixels"].values())
    assert seen["agent_pos"].dtype == np.float32
    assert len(seen["agent_pos"]) == len(body.state_names)


def test_frames_are_the_callers_own(body):
    """A driver may fill the same buffer again; a frame that was seen must not change afterwards."""
    body.connect()
    first = body.observe()["pixels"]
    kept = {name: frame.copy() for name, frame in first.items()}
    second = body.observe()["pixels"]
    for name, frame in first.items():
        assert np.array_equal(frame, kept[name])
        assert not np.shares_memory(frame, second[name])


def test_what_was_taken_is_returned_and_held(body):
    body.connect()
    seen = body.observe()
    inside = np.clip(seen["agent_pos"][list(body.at)] + 1, body.action_space.low, body.action_space.high)
    assert np.allclose(body.send(inside), inside)
    beyond = body.send(body.action_space.high + 50)
    assert np.allclose(beyond, body.action_space.high), "the robot's own limits, as it returned them"
    held = body.hold()
    assert np.allclose(held, body.observe()["agent_pos"][list(body.at)], atol=25), "where it is, not where it was going"
    assert body.disconnect() is None
    assert not body.robot.is_connected
