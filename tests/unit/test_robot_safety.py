"""Clamps and watchdogs, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from worldsim.core.errors import UserError
from worldsim.robots.safety import (
    CameraWatch,
    Guard,
    LateWatch,
    Stopped,
    clamp_range,
    clamp_relative,
    limits,
    positions,
    require_finite,
)

NAMES = ("pan.pos", "lift.pos", "gripper.pos")
ROW, HERE = np.array([10.0, -10.0, 50.0]), np.array([0.0, 0.0, 49.0])


def test_a_relative_clamp_moves_at_most_the_limit_and_never_away():
    clamped = clamp_relative(ROW, HERE, np.array([5.0, 2.0, 5.0]))
    assert clamped.tolist() == [5.0, -2.0, 50.0]
    inside = HERE + 0.5
    assert np.array_equal(clamp_relative(inside, HERE, np.full(3, 1.0)), inside)


def test_the_range_clamp_keeps_what_is_inside():
    assert clamp_range(ROW, np.full(3, -5.0), np.full(3, 60.0)).tolist() == [10.0, -5.0, 50.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_number_no_motion(bad):
    with pytest.raises(Stopped, match=r"for lift\.pos; nothing was sent") as stopped:
        require_finite(np.array([0, bad, 0]), NAMES)
    assert (stopped.value.by, stopped.value.fault) == ("nan", True)
    with pytest.raises(Stopped, match=r"shape \(2,\)"):
        require_finite(np.zeros(2), NAMES)


def test_the_range_comes_first_so_that_no_step_is_ever_long():
    """An arm that starts outside the training range creeps back into it instead of jumping."""
    guard = Guard(NAMES, np.full(3, -20.0), np.full(3, 20.0), np.full(3, 5.0), (0, 1, 2))
    row, clamped = guard.check(np.array([0, 40, 0], np.float32), np.array([80, 18, 0], np.float32))
    assert row.tolist() == [75.0, 20.0, 0.0]  # the second would reach 23 if only the step were limited
    assert clamped == ["pan.pos", "lift.pos"]
    assert row.dtype == np.float32


def test_positions_are_found_by_name():
    state = ("battery", *reversed(NAMES))
    assert positions(NAMES, state) == (3, 2, 1)
    assert positions(NAMES, ("x", "y")) is None
    guard = Guard(NAMES, limit=np.full(3, 1.0), at=positions(NAMES, state))
    row, _ = guard.check(np.array([9, 9, 9], np.float32), np.array([99, 3, 2, 1], np.float32))
    assert row.tolist() == [2.0, 3.0, 4.0]


def test_changes_are_limited_themselves():
    guard = Guard(NAMES, limit=np.full(3, 2.0), deltas=True)
    row, clamped = guard.check(np.array([-3, 1, 3], np.float32), np.full(3, 500, np.float32))
    assert row.tolist() == [-2.0, 1.0, 2.0]
    assert clamped == ["pan.pos", "gripper.pos"]


def test_a_position_that_is_no_number_stops():
    guard = Guard(NAMES, limit=np.full(3, 2.0), at=(0, 1, 2))
    with pytest.raises(Stopped, match="no number"):
        guard.check(np.zeros(3, np.float32), np.array([0, np.nan, 0], np.float32))


def test_limits_are_one_number_or_one_per_joint():
    assert limits(5.0, NAMES).tolist() == [5, 5, 5]
    assert limits({"pan": 1, "lift.pos": 2, "gripper": 3}, NAMES).tolist() == [1, 2, 3]
    assert limits(None, NAMES) is None
    with pytest.raises(UserError, match="no joint 'lft'; did you mean 'lift'"):
        limits({"pan": 1, "lft": 2, "gripper": 3}, NAMES)
    with pytest.raises(UserError, match=r"nothing about the joint 'gripper\.pos'"):
        limits({"pan": 1, "lift": 2}, NAMES)
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="above 0"):
            limits(bad, NAMES)


def picture(value: int) -> dict[str, np.ndarray]:
    return {"front": np.full((4, 4, 3), value, np.uint8)}


def test_a_frozen_picture_stops_after_half_a_second():
    watch = CameraWatch(0.5)
    watch.see(picture(1), 0.0)
    watch.see(picture(1), 0.5)
    with pytest.raises(Stopped, match="camera 'front' has shown the same picture for 600 ms"):
        watch.see(picture(1), 0.6)


def test_a_slow_camera_is_not_a_frozen_one_and_each_is_watched_alone():
    watch = CameraWatch(0.5)
    for k in range(40):  # seen at 20 Hz, new pictures at 3 Hz
        watch.see(picture(k // 6), k * 0.05)
    two = {"front": picture(0)["front"], "wrist": picture(1)["front"]}
    watch = CameraWatch(0.5)
    for k in range(5):
        watch.see({**two, "front": picture(k)["front"]}, k * 0.12)
    with pytest.raises(Stopped, match="'wrist'"):
        watch.see({**two, "front": picture(9)["front"]}, 0.6)


def test_lateness_counts_whole_periods():
    watch = LateWatch(0.1, 2)
    watch.policy(2)
    with pytest.raises(Stopped, match="not answered for 3 periods of 100 ms"):
        watch.policy(3)
    watch.loop(0.29)
    with pytest.raises(Stopped, match="a step took 310 ms where 100 ms are given"):
        watch.loop(0.31)
