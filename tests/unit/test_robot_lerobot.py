"""LeRobot's own robots behind the adapter: an SO-100 with its motor bus mocked, cameras, a person's device, plugins."""

from __future__ import annotations

import time
from pathlib import Path
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest

from tests import painted
from worldsim import robots
from worldsim.core.errors import UserError
from worldsim.robots import fake
from worldsim.robots.lerobot import LeRobotArm
from worldsim.robots.safety import Stopped

JOINTS = fake.JOINTS


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A Feetech bus that remembers what was written and answers with where the joints are; LeRobot's robot is the real one.

    source: the pattern of lerobot's own tests/robots/test_so100_follower.py.
    """
    from lerobot.robots.so_follower import so_follower

    made = MagicMock(name="bus")
    made.motors = dict.fromkeys(JOINTS)
    made.is_connected = False
    made.is_calibrated = True
    made.position = dict(zip(JOINTS, (1.0, 2.0, 3.0, 4.0, 5.0, 50.0)))
    made.connect.side_effect = lambda: setattr(made, "is_connected", True)
    made.disconnect.side_effect = lambda torque_off=True: setattr(made, "is_connected", False)
    made.sync_read.side_effect = lambda register, **_: dict(made.position)
    made.sync_write.side_effect = lambda register, goal: made.position.update(goal)
    monkeypatch.setattr(so_follower, "FeetechMotorsBus", lambda **given: made)
    return made


def arm(tmp_path: Path, kind: str = "so100", **more) -> LeRobotArm:
    return robots.make({"type": kind, "port": "/dev/null", "calibration_dir": str(tmp_path), "id": "mine", **more}, 10)


@pytest.mark.parametrize(
    ("kind", "real"), [("so100", "so100_follower"), ("sr100", "so100_follower"), ("so101", "so100_follower")]
)
def test_short_names_are_lerobots_arm(bus, tmp_path, kind, real) -> None:
    """LeRobot registers both arms on one class, whose type reads back as the SO-100's."""
    body = arm(tmp_path, kind)
    assert body.kind in (real, "so101_follower")
    assert body.action_spec.names == tuple(f"{joint}.pos" for joint in JOINTS)
    assert body.action_spec.units == ("deg",) * 5 + ("%",)
    assert arm(tmp_path, kind, use_degrees=False).action_spec.units == ("±100",) * 5 + ("%",), "another convention"


def test_rows_reach_the_motors_in_their_order_and_what_was_clipped_comes_back(bus, tmp_path) -> None:
    body = arm(tmp_path, max_relative_target=2.0)
    body.connect()
    assert body.observe()["agent_pos"].tolist() == [1, 2, 3, 4, 5, 50]
    taken = body.send(np.array([2, 9, 3, -9, 5, 50], np.float32))
    assert taken.tolist() == [2, 4, 3, 2, 5, 50], "LeRobot's own clamp: at most 2 from where each joint is"
    assert bus.sync_write.call_args.args == ("Goal_Position", dict(zip(JOINTS, taken.tolist())))
    bus.position["elbow_flex"] = 33.0
    assert body.hold().tolist() == [2, 4, 33, 2, 5, 50]
    assert body.release()
    bus.disable_torque.assert_called_once_with()
    assert body.disconnect() is None
    bus.disconnect.assert_called_once_with(True)


def test_an_arm_without_calibration_is_let_go_and_never_calibrated(bus, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("builtins.input", lambda text="": pytest.fail("it must not ask"))
    bus.is_calibrated = False
    with pytest.raises(UserError, match="'mine' is not calibrated") as refused:
        arm(tmp_path).connect()
    assert "lerobot-calibrate" in refused.value.command
    assert not bus.is_connected


def test_a_bus_that_cannot_be_reached_is_named(bus, tmp_path) -> None:
    bus.connect.side_effect = ConnectionError("Could not connect on port '/dev/null'")
    with pytest.raises(UserError, match="so100_follower cannot be connected: Could not connect on port"):
        arm(tmp_path).connect()


def test_a_bus_that_fails_in_the_loop_is_a_reason_to_stop(bus, tmp_path) -> None:
    body = arm(tmp_path)
    body.connect()
    bus.sync_read.side_effect = RuntimeError("There is no status packet!")
    with pytest.raises(Stopped, match="failed while reading: There is no status packet!") as stopped:
        body.observe()
    assert stopped.value.by == "motor"


def test_limits_come_from_the_calibration(bus, tmp_path) -> None:
    from lerobot.motors import MotorCalibration

    body = arm(tmp_path)
    with pytest.raises(UserError, match=r"how far 'shoulder_pan\.pos' of so100_follower may go"):
        _ = body.action_space
    body.robot.calibration = {joint: MotorCalibration(k, 0, 0, 1024, 3071) for k, joint in enumerate(JOINTS)}
    box = body.action_space
    half = (3071 - 1024) / 2 * 360 / 4095
    assert np.allclose(box.high, [half] * 5 + [100])
    assert np.allclose(box.low, [-half] * 5 + [0])
    body._limits = {"shoulder_pan": (-10.0, 20.0)}
    assert (body.action_space.low[0], body.action_space.high[0]) == (-10, 20)


@pytest.fixture
def camera(tmp_path, monkeypatch) -> dict:
    """LeRobot's OpenCV camera on a video file in place of a device, shown again and again; ``camera["dead"] = True`` unplugs it."""
    from lerobot.cameras.opencv import OpenCVCamera

    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 30, (128, 64))
    for index in range(40):
        frame = painted.paint(index, 64, 128)
        frame[32:] = (200, 30, 30)
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    made = {"type": "opencv", "index_or_path": str(film), "width": 128, "height": 64, "fps": 30, "warmup_s": 0}
    state = {"dead": False, "config": made}
    read = OpenCVCamera._read_from_hardware

    def again(self):
        time.sleep(0.005)
        if state["dead"]:
            raise RuntimeError(f"{self} read failed (status=False).")
        try:
            return read(self)
        except RuntimeError:
            self.videocapture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            return read(self)

    monkeypatch.setattr(OpenCVCamera, "_read_from_hardware", again)
    for setting in ("_validate_width_and_height", "_validate_fps"):  # a file cannot be set, it is as it is
        monkeypatch.setattr(OpenCVCamera, setting, lambda self: None)
    return state


def test_a_camera_of_lerobots_shows_its_frames_in_rgb(bus, tmp_path, camera) -> None:
    """A red picture stays red."""
    body = arm(tmp_path, cameras={"front": camera["config"]})
    assert body.cameras == {"front": (64, 128)}
    body.connect()
    try:
        frame = body.observe()["pixels"]["front"]
    finally:
        assert body.disconnect() is None
    assert painted.read_index(frame) < 40
    red, green, blue = frame[48:].reshape(-1, 3).mean(0)
    assert red > 150 > 80 > max(green, blue)


def look_for(seconds: float, body: LeRobotArm) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        body.observe()
        time.sleep(0.02)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_unplugged_camera_stops_and_the_arm_is_held_and_let_go(bus, tmp_path, camera) -> None:
    """LeRobot then neither reads the joints nor disconnects; the arm is held where it was seen last, and its bus closed."""
    body = arm(tmp_path, cameras={"front": camera["config"]})
    body.connect()
    state = body.observe()["agent_pos"]
    camera["dead"] = True
    with pytest.raises(Stopped) as stopped:
        look_for(20, body)
    assert stopped.value.by == "camera"
    assert body.hold(state).tolist() == state.tolist()
    body.disconnect()
    assert not bus.is_connected
    assert bus.disconnect.call_args.args == (True,)


def test_the_fake_is_driven_by_lerobots_own_factory(tmp_path) -> None:
    from lerobot.configs.parser import load_plugin
    from lerobot.robots import make_robot_from_config

    robot = make_robot_from_config(fake.FakeConfig(calibration_dir=tmp_path))
    assert isinstance(robot, fake.Fake)
    load_plugin("worldsim.robots")
    with robot:
        assert set(robot.get_observation()) == set(robot.observation_features)
    assert not robot.is_connected


PLUGIN = """
from dataclasses import dataclass
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

@TeleoperatorConfig.register_subclass("nudge")
@dataclass
class NudgeConfig(TeleoperatorConfig):
    joints: int = 6
    step: float = 1.0
    broken: bool = False

class Nudge(Teleoperator):
    config_class, name = NudgeConfig, "nudge"
    def __init__(self, config):
        super().__init__(config)
        self.config, self.count, self.connected = config, 0, False
    names = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    action_features = property(lambda self: {f"{n}.pos": float for n in self.names[: self.config.joints]})
    feedback_features = property(lambda self: {})
    is_connected = property(lambda self: self.connected)
    is_calibrated = property(lambda self: True)
    def connect(self, calibrate=True): self.connected = True
    def calibrate(self): pass
    def configure(self): pass
    def send_feedback(self, feedback): pass
    def disconnect(self): self.connected = False
    def get_action(self):
        self.count += 1
        value = float("nan") if self.config.broken else self.config.step * self.count
        return {n: value for n in self.action_features}
"""


def test_a_person_drives_through_a_plugin(tmp_path, monkeypatch, worldsim) -> None:
    """``discover`` imports a package that registers a teleoperator; the policy's wish is logged beside what was done."""
    from worldsim.core.files import read_json
    from worldsim.formats import open_dataset

    (tmp_path / "lerobot_teleoperator_nudge.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--mode", "shadow", "--robot", "fake", "--hz", "20", "--seconds", "0.4", "--out", "run", "--set", "film=false"]
    sets = ["discover=lerobot_teleoperator_nudge", "teleop.type=nudge", "max_relative_target=null", "bare_seconds=0"]
    sets += ["late_periods=100"]
    more = [word for pair in sets for word in ("--set", pair)]
    code, _, err = worldsim("robot", "run", *words, *more)
    assert code == 0, err
    episode = open_dataset(Path("run/log")).episode(0)
    assert episode.actions[:, 0].tolist() == list(range(1, 9)), "what the person did"
    shadow = read_json(Path("run/result.json"))["metrics"]["shadow"]
    error = np.abs(episode.extras["policy_action"] - episode.actions).mean()
    assert shadow["mae"] == pytest.approx(error, abs=1e-3)
    hasty = [*more, "--set", "teleop.step=50", "--set", "max_relative_target=5", "--set", "clamp_quantiles=false"]
    code, _, err = worldsim("robot", "run", *words, *hasty, "--out", "hasty")
    assert code == 0, err
    episode = open_dataset(Path("hasty/log")).episode(0)
    ahead = episode.actions[:, 0] - episode.states[: len(episode.actions), 0]
    assert np.allclose(ahead, 5, atol=1e-3), "a person's rows are limited as the policy's are"
    code, _, err = worldsim("robot", "run", *words, *more, "--set", "teleop.broken=true", "--out", "broken")
    assert (code, "the person gave nan for shoulder_pan.pos; nothing was sent" in err) == (1, True), err
    code, _, err = worldsim("robot", "run", *words, *more, "--set", "teleop.joints=5", "--out", "other")
    assert code == 1
    assert "teleop nudge does not drive 'gripper.pos' of the robot" in err


def test_a_type_that_nobody_registers_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no robot of type 'koch_folower'; did you mean 'koch_follower'"):
        robots.make({"type": "koch_folower", "port": "x"}, 10)


def test_another_convention_is_refused(bus, tmp_path) -> None:
    """A policy trained in degrees does not drive an arm that is set to -100 … 100, nor one at another rate."""
    from worldsim.commands._policy import require_fit
    from worldsim.core.types import PolicyNeeds

    degrees, percent = arm(tmp_path), arm(tmp_path, use_degrees=False)
    needs = PolicyNeeds({}, degrees.state_names, degrees.action_spec, 10.0)
    require_fit(needs, degrees, "the policy", "the robot")
    with pytest.raises(UserError, match=r"'shoulder_pan\.pos' of the policy is in deg, that of the robot in ±100"):
        require_fit(needs, percent, "the policy", "the robot")
