"""``worldsim robot run`` on the fake robot: what is logged is what happened, and every way to end leaves the arm held,
disconnected, and the log on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from tests import dreams, modality_twins, painted
from tests.conftest import ROOT
from worldsim import robots
from worldsim.commands import _dream_env
from worldsim.core.files import read_json
from worldsim.data import robot_log as logs
from worldsim.formats import open_dataset
from worldsim.policies import scripted
from worldsim.robots import loop

JOINTS = 6
QUICK = ("bare_seconds=0", "film=false", "hold_seconds=0.01", "late_periods=100")  # a busy machine is no fault here
COMMON = ("--seed", "3", *(word for pair in QUICK for word in ("--set", pair)))


class Acting(scripted._Boxed):
    """Sends what ``rule(call, observation)`` says; the first call is the loop's warm-up."""

    rule = staticmethod(lambda call, observation: np.zeros((1, JOINTS)))
    calls = 0

    def begin(self) -> None:
        type(self).calls = 0

    def act(self, observation):
        call, type(self).calls = self.calls, self.calls + 1
        return np.asarray(self.rule(call, observation), np.float32)


@pytest.fixture
def acting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(scripted._KINDS, "acting", Acting)

    def rule(function) -> None:
        monkeypatch.setattr(Acting, "rule", staticmethod(function))

    return rule


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop waits for the policy however busy this machine is, where lateness is not what is tested."""
    monkeypatch.setattr(loop, "BUDGET", 1e3)


@pytest.fixture
def drive(worldsim, tmp_path):
    """``drive("live", "robot.faults.freeze_camera=3") -> (code, stderr, result, what the robot witnessed)``."""

    def run(mode: str, *sets: str, policy: str = "scripted:acting", steps: int = 8, hz: float = 20):
        witness = tmp_path / "witness"
        words = [word for pair in (f"robot.witness={witness}", *sets) for word in ("--set", pair)]
        options = ["--policy", policy, "--hz", hz, "--seconds", steps / hz, "--mode", mode, "--out", "run"]
        code, _, err = worldsim("robot", "run", *options, *COMMON, *words)
        result = read_json(Path("run/result.json")) if Path("run/result.json").exists() else {}
        return code, err, result, witness.read_text().splitlines() if witness.exists() else []

    return run


def index_of(observation) -> int:
    return painted.read_index(observation["pixels"]["front"])


def by_index(call, observation):
    """A row that says which frame it was made of; the gripper asks for more than there is."""
    n = index_of(observation)
    return [[n / 10, -n / 10, 0, 0, 0, 150]]


def test_frame_t_meets_action_t_and_both_survive_conversion(acting, patient, drive, worldsim) -> None:
    """Frame t shows n + t; the action beside it was made of that frame, and is where the arm is at frame t + 1."""
    acting(by_index)
    sets = ("max_relative_target=null", "robot.speed=1.0e9", "clamp_quantiles=false")
    code, err, result, _ = drive("live", *sets, steps=12)
    assert code == 0, err
    code, _, err = worldsim("convert", "run/log", "--to", "lerobot", "--out", "made")
    assert code == 0, err
    for folder in ("run/log", "made"):
        source = open_dataset(Path(folder))
        assert source.card.actions.units == ("deg",) * 5 + ("%",)
        episode = source.episode(0)
        shown = [painted.read_index(frame) for frame in episode.frames["front"].read()]
        assert shown == list(range(shown[0], shown[0] + 12))
        assert [painted.read_index(frame) for frame in episode.frames["wrist"].read()] == shown
        assert np.allclose(episode.actions[:, 0] * 10, shown)
        assert np.allclose(episode.states[1:, 0], episode.actions[: len(shown) - 1, 0]), "acts between t and t + 1"
        assert np.allclose(episode.actions[:, 5], 100), "what the robot took"
        assert np.allclose(episode.extras["policy_action"][:, 5], 150), "what the policy wished"
    assert result["metrics"]["stopped_by"] == "time"
    assert result["metrics"]["sent"] == result["metrics"]["steps"] == 12


def test_watch_is_the_default_and_sends_nothing(worldsim) -> None:
    options = ("--policy", "scripted:sine", "--robot", "fake", "--hz", 20, "--seconds", 0.4, "--out", "run")
    code, _, err = worldsim("robot", "run", *options, "--set", "robot.witness=witness")
    assert code == 0, err
    assert Path("witness").read_text().splitlines() == ["connect", "disconnect"]
    metrics = read_json(Path("run/result.json"))["metrics"]
    assert (metrics["mode"], metrics["sent"], metrics["steps"]) == ("watch", 0, 8)
    for numbers in (metrics["jitter"], metrics["bare"]):
        assert 0 <= numbers["p50_ms"] <= numbers["p99_ms"] <= numbers["max_ms"]
        assert numbers["periods"] == 7
    episode = open_dataset(Path("run/log")).episode(0)
    assert episode.actions is None
    assert episode.extras["policy_action"].shape == (8, JOINTS)
    assert Path("run/film.mp4").stat().st_size > 1000


def test_live_rows_are_clamped_to_what_is_near(acting, patient, drive) -> None:
    acting(lambda call, observation: np.full((1, JOINTS), 90.0))
    code, err, result, witness = drive("live", "max_relative_target=2.0")
    assert code == 0, err
    episode = open_dataset(Path("run/log")).episode(0)
    assert np.abs(episode.actions - episode.states)[:, :5].max() <= 2.0 + 1e-4
    assert result["metrics"]["clamped"]["elbow_flex.pos"] == 8
    assert [line.split()[0] for line in witness] == ["connect", *["send"] * 9, "disconnect"], "8 steps, then held"


def check_stopped(code: int, err: str, result: dict, witness: list[str], by: str) -> None:
    """Exit 1 with one sentence, held (the last thing sent is where the arm was), disconnected, logged."""
    assert code == 1, err
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert result["metrics"]["stopped_by"] == by
    assert witness[-1] == "disconnect"
    assert witness.count("disconnect") == 1
    (episode,) = logs.episodes(Path("run/log"))
    steps = logs.read_steps(episode)
    assert steps
    assert read_json(episode / logs.END)["stopped_by"] == by
    assert open_dataset(Path("run/log")).episode(0).num_frames == len(steps)
    if result["metrics"]["sent"]:
        held = [float(word) for word in witness[-2].split()[1:]]
        assert np.allclose(held, result["metrics"]["held"])
        assert np.abs(np.array(held) - steps[-1]["state"]).max() < 60


def moving(call, observation):
    return observation["agent_pos"][None] + 1


@pytest.mark.parametrize(
    ("by", "sets", "says"),
    [
        ("camera", ("robot.faults.freeze_camera=4", "max_age=0.15"), "camera 'front' has shown the same picture for"),
        ("motor", ("robot.faults.raise_on_send=4",), "Failed to write 'Goal_Position'"),
        ("motor", ("robot.faults.raise_on_read=4",), "Failed to sync read 'Present_Position'"),
        ("late", ("robot.faults.sleep_on_read=4", "robot.faults.sleep_seconds=0.9", "late_periods=8"), "a step took"),
    ],
)
def test_a_fault_of_the_robot_stops_it(acting, patient, drive, by, sets, says) -> None:
    acting(moving)
    code, err, result, witness = drive("live", *sets, steps=60)
    assert says in err
    check_stopped(code, err, result, witness, by)
    assert 3 <= result["metrics"]["steps"] <= 20


def test_a_policy_that_sleeps_is_waited_for_and_then_not(acting, drive) -> None:
    """Late by a period or two: what was sent last is held, counted and logged. Later: stopped."""

    def sleepy(call, observation):
        time.sleep({4: 0.3, 6: 30}.get(call, 0))
        row = np.array(moving(call, observation), np.float32)
        row[0, 1] = 90  # far away: to send it again, instead of what was sent, would be another step towards it
        return row

    acting(sleepy)
    began = time.monotonic()
    code, err, result, witness = drive("live", "late_periods=2", steps=60, hz=4)
    assert time.monotonic() - began < 20, "it does not wait for a policy that hangs"
    check_stopped(code, err, result, witness, "late")
    assert "the policy has not answered for 3 periods of 250 ms" in err
    steps = logs.read_steps(logs.episodes(Path("run/log"))[0])
    late = [t for t, step in enumerate(steps) if step.get("late")]
    assert late == [4, 7, 8, 9], "call 4 comes back one step later; call 6, at step 7, never"
    assert result["metrics"]["late"] == result["metrics"]["overruns"] == 4
    for t in late[:-1]:  # at the last it is stopped
        assert steps[t]["sent"] == steps[t - 1]["sent"], "held"
    assert steps[5]["sent"] != steps[4]["sent"], "the late answer is used when it is there"


def test_a_late_policy_is_offered_half_of_the_rate_it_ran_at(acting, worldsim) -> None:
    """Also where the rate was not typed: then it is the robot's ten."""

    def sleepy(call, observation):
        if call >= 3:
            time.sleep(2)
        return moving(call, observation)

    acting(sleepy)
    words = ["--policy", "scripted:acting", "--seconds", 5, "--mode", "live", "--out", "run", *COMMON]
    code, _, err = worldsim("robot", "run", *words, "--set", "late_periods=2")
    assert code == 1
    assert "--hz 5" in err


@pytest.mark.parametrize("mode", ["live", "watch"])
def test_rows_that_are_no_numbers_stop_every_mode(acting, patient, drive, mode) -> None:
    acting(lambda call, observation: np.full((1, JOINTS), np.nan if call == 3 else 1.0))
    code, err, result, witness = drive(mode)
    check_stopped(code, err, result, witness, "nan")
    assert "nan for shoulder_pan.pos; nothing was sent" in err
    assert all("nan" not in line for line in witness)


def test_a_policy_that_fails_stops(acting, patient, drive) -> None:
    def broken(call, observation):
        if call == 2:
            raise RuntimeError("CUDA out of memory")
        return np.zeros((1, JOINTS))

    acting(broken)
    code, err, result, witness = drive("live")
    check_stopped(code, err, result, witness, "policy")
    assert "RuntimeError: CUDA out of memory" in err


def test_a_bus_that_fails_at_the_end_too_is_said_and_hides_nothing(acting, patient, drive) -> None:
    acting(moving)
    sets = ("robot.faults.raise_on_send=4", "robot.faults.raise_on_disconnect=true")
    code, err, result, _ = drive("live", *sets)
    assert code == 1
    assert "Goal_Position" in err
    assert any("the fake bus did not answer" in note for note in result["notes"])


def test_chunks_are_reused(acting, patient, drive) -> None:
    """Four rows of each chunk: the policy is asked at every fourth frame, and row i is sent i frames later."""

    def chunk(call, observation):
        return np.stack([by_index(call, observation)[0] + np.array([0, 0, i, 0, 0, 0]) for i in range(6)])

    acting(chunk)
    code, err, _, _ = drive("live", "execute=4", "max_relative_target=null", steps=10)
    assert code == 0, err
    rows = open_dataset(Path("run/log")).episode(0).actions
    first = round(rows[0, 0] * 10)
    assert np.allclose(rows[:, 0] * 10, first + np.array([0, 0, 0, 0, 4, 4, 4, 4, 8, 8]))
    assert rows[:, 2].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_shadow_moved_by_hand_compares_with_where_the_joints_went(acting, patient, drive) -> None:
    acting(lambda call, observation: observation["agent_pos"][None] + 7)
    code, err, result, witness = drive("shadow", "robot.hand=true", "robot.speed=1.0e9", steps=10)
    assert code == 0, err
    assert witness == ["connect", "disconnect"]
    episode = open_dataset(Path("run/log")).episode(0)
    assert np.allclose(episode.actions, episode.states[1:]), "row t is where the joints were at frame t + 1"
    error = np.abs(episode.extras["policy_action"][:-1] - episode.actions).mean()
    assert result["metrics"]["shadow"]["mae"] == pytest.approx(error, abs=1e-3)
    assert 5 < error < 9


def start(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "worldsim.cli.main", "robot", "run", "--robot", "fake", *words, *COMMON]
    told = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_steps(log: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    path = log / "episode_000000" / logs.STEPS
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} steps: {process.communicate()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_the_robot_held_and_disconnected(tmp_path: Path, number: int) -> None:
    out, witness = tmp_path / "run", tmp_path / "witness"
    process = start("--mode", "live", "--hz", "20", "--out", str(out), "--json", "--set", f"robot.witness={witness}")
    wait_for_steps(out / "log", 5, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    result = json.loads(stdout)
    assert result["status"] == "interrupted"
    assert result["metrics"]["stopped_by"] == "interrupt"
    assert result["metrics"]["steps"] >= 5
    assert result == {"error": "interrupted", **read_json(out / "result.json")}
    lines = witness.read_text().splitlines()
    assert lines[-1] == "disconnect"
    assert np.allclose([float(word) for word in lines[-2].split()[1:]], result["metrics"]["held"])
    assert open_dataset(out / "log").episode(0).num_frames == result["metrics"]["steps"]


def test_a_kill_loses_at_most_a_second(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start("--mode", "live", "--hz", "20", "--seconds", "60", "--out", str(out))
    wait_for_steps(out / "log", 8, process)
    process.kill()
    process.communicate()
    assert not (out / "result.json").exists()
    films = [out / "log" / "episode_000000" / f"{camera}.mjpeg" for camera in ("front", "wrist")]
    steps = logs.read_steps(films[0].parent)
    assert len(steps) >= 8
    with (films[0].parent / logs.STEPS).open("a") as file:
        file.write('{"t": 999, "sta')  # torn in the middle of a line
    episode = open_dataset(out / "log").episode(0)
    assert episode.num_frames == len(episode.actions) == len(steps)
    assert episode.provenance["stopped_by"] == "killed"
    shown = [painted.read_index(frame) for frame in episode.frames["front"].read()]
    assert shown == list(range(shown[0], shown[0] + len(steps)))


def test_the_same_command_adds_an_episode(worldsim) -> None:
    for seconds in (0.3, 0.4):  # how long is no part of what a run is
        code, _, err = worldsim(
            "robot", "run", "--config", "smoke", "--seconds", seconds, "--hz", 20, "--out", "run", *COMMON
        )
        assert code == 0, err
    assert open_dataset(Path("run/log")).ids() == ["episode_000000", "episode_000001"]


def test_dry_run_names_what_would_be_connected_and_connects_nothing(worldsim) -> None:
    code, out, err = worldsim(
        "robot", "run", "--mode", "live", "--robot", "fake", "--dry-run", "--json", "--set", "robot.witness=w"
    )
    assert code == 0, err
    plan = json.loads(out)["plan"]
    assert plan["sends"] == "clamped actions"
    assert plan["cameras"] == {"front": [96, 128], "wrist": [96, 128]}
    assert plan["joints"]["gripper.pos"] == "%"
    assert not Path("w").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--robot", "so10"), "LeRobot knows no robot of type 'so10'; did you mean 'so101'?"),
        (("--robot", "fake", "--set", "robot.hieght=3"), "unknown key 'robot.hieght'; did you mean 'height'?"),
        (("--robot", "fake", "--hz", "0"), "hz must be above 0"),
        (("--robot", "fake", "--policy", "scripted:sin"), "did you mean 'sine'?"),
        (("--robot", "fake", "--set", "max_relative_target=-1"), "max_relative_target must be above 0"),
        (("--robot", "fake", "--mode", "dream"), "needs a world model"),
        (("--robot", "fake", "--remote"), "connected to this machine"),
        (("--robot", "so100", "--set", "robot.port=/dev/ttyX", "--mode", "live"), "will move for 1 s"),
        (("--robot", "fake", "--remote", "--dry-run"), "would be refused: robot run drives what is connected"),
        (("--robot", "fake", "--set", "limits={elbo: [0, 1]}"), "limits names no joint 'elbo'"),
        (("--robot", "fake", "--set", "limits={gripper: [50, 20]}"), "limits.gripper = [50, 20]: the least must be below"),
        (("--mode", "dream", "--world", "nowhere"), "no bundled world model 'nowhere'"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_moves(worldsim, words, says) -> None:
    code, _, err = worldsim("robot", "run", "--seconds", 1, "--out", "run", *words)
    assert code == (0 if "--dry-run" in words else 1)
    assert says in err
    assert "Traceback" not in err


def test_a_dream_is_driven_by_the_same_loop(acting, worldsim, tmp_path, monkeypatch) -> None:
    """Echo paints the number that a row leads to, the policy sends the number that it sees: one slip breaks the chain."""
    source = painted.PaintedSource(3, 10)
    data = dreams.write_painted(tmp_path / "data", 3, 10)
    monkeypatch.setattr(_dream_env, "load_world", lambda name, device: dreams.Echo(source.card.actions))

    def follow(call, observation):
        view = next(iter(observation["pixels"].values()))
        return np.concatenate([[painted.read_index(view) % 1000], np.zeros(6)])[None]

    acting(follow)
    words = ["--policy", "scripted:acting", "--mode", "dream", "--world", "echo", "--seconds", "0.6", "--out", "run"]
    code, _, err = worldsim(
        "robot", "run", *words, "--set", f"world_data={data}", "--set", "film=false", "--set", "clamp_quantiles=false"
    )
    assert code == 0, err
    episode = open_dataset(Path("run/log")).episode(0)
    shown = [painted.read_index(frame) % 1000 for frame in next(iter(episode.frames.values())).read()]
    assert shown == list(range(shown[0], shown[0] + 6))
    assert episode.actions[:, 0].tolist() == shown
    assert read_json(Path("run/result.json"))["metrics"]["robot"] == "dream"


def test_a_policy_that_looks_back_is_shown_every_frame_once(acting, patient, drive, monkeypatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(Acting, "looks_back", True, raising=False)
    monkeypatch.setattr(Acting, "observe", lambda self, observation: seen.append(index_of(observation)), raising=False)

    def chunk(call, observation):
        seen.append(index_of(observation))
        return np.zeros((4, JOINTS))

    acting(chunk)
    code, err, _, _ = drive("watch", "execute=4", steps=10)
    assert code == 0, err
    assert seen[1:10] == list(range(seen[1], seen[1] + 9)), "after the warm-up: asked at 0, 4, 8, shown the others"


class Shown:
    """What ``modality_twins.write`` asks of an environment, for the fake robot."""

    def __init__(self, body, fps: float) -> None:
        self.observation_space = {
            "pixels": spaces.Dict({n: spaces.Box(0, 255, (*s, 3), np.uint8) for n, s in body.cameras.items()})
        }
        self.action_space, self.state_names, self.fps = body.action_space, body.state_names, fps
        self.action_spec = replace(body.action_spec, rate=fps)


def test_a_world_modality_policy_drives_at_its_own_rate_and_its_tokens_are_logged(worldsim, patient, tmp_path) -> None:
    """Frame -> embedding -> token -> policy -> first row, from a checkpoint alone; clamped to its training range."""
    run = modality_twins.write(tmp_path / "policy", Shown(robots.make({"type": "fake"}, 20), 20.0))
    words = ["--policy", str(run), "--robot", "fake", "--mode", "live", "--seconds", "0.4"]
    more = [word for pair in QUICK if not pair.startswith("film") for word in ("--set", pair)]
    code, _, err = worldsim("robot", "run", *words, *more, "--out", "run")
    assert code == 0, err
    metrics = read_json(Path("run/result.json"))["metrics"]
    assert (metrics["hz"], metrics["steps"]) == (20.0, 8)
    episode = open_dataset(Path("run/log")).episode(0)
    assert episode.extras["world_token"].shape[0] == episode.extras["world_future"].shape[0] == 8
    steps = logs.read_steps(logs.episodes(Path("run/log"))[0])
    assert [len(step["future"]) for step in steps] == [modality_twins.FUTURE] * 8
    assert Path("run/film.mp4").stat().st_size > 1000
    code, _, err = worldsim("robot", "run", *words, *more, "--out", "other", "--hz", "10")
    assert code == 1
    assert "20 observations per second" in err
    code, _, err = worldsim("robot", "run", *words, *more, "--out", "other", "--set", "robot.cameras=[left]")
    assert code == 1
    assert "sees a camera 'front'" in err
