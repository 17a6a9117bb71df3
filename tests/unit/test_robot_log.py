"""The log of a robot's run: what was written is what is read, torn or not; and the film that is made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import painted
from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.types import ActionSpec
from worldsim.data import robot_log as logs
from worldsim.data.video import open_stream
from worldsim.formats import detect, open_dataset
from worldsim.robots import film
from worldsim.robots.fake import JOINTS
from worldsim.robots.loop import Loop, Settings
from worldsim.robots.safety import Guard

NAMES = tuple(f"{joint}.pos" for joint in JOINTS)
SPEC = ActionSpec(NAMES, ("deg",) * 6, "absolute", "joint", rate=10.0)
HEAD = logs.Head("fake", "live", "scripted:sine", "sent", 10.0, {"front": (64, 128), "top": (48, 96)}, NAMES, SPEC, "wave")


def write(folder: Path, steps: int = 6, last_sent: bool = True, **end) -> Path:
    logs.write_head(folder, HEAD)
    episode = logs.next_episode(folder)
    log = logs.EpisodeLog(episode, backlog=4)
    for t in range(steps):
        pixels = {name: painted.paint(t, *size, k) for k, (name, size) in enumerate(HEAD.cameras.items())}
        line = {"t": t, "seconds": t / 10, "state": np.full(6, t, np.float32), "wish": np.full(6, t + 0.25, np.float32)}
        if t < steps - 1 or last_sent:
            line["sent"] = np.full(6, t + 0.5, np.float32)
        log.add(pixels, **line, token=[t % 3], future=[[(t + 1) % 3], [(t + 2) % 3]])
    log.close(stopped_by="time", **end)
    return episode


@pytest.mark.parametrize("last_sent", [True, False])
def test_what_was_written_is_read_at_its_own_frame(tmp_path, last_sent) -> None:
    write(tmp_path, last_sent=last_sent)
    assert detect(tmp_path) == "robot-log"
    source = open_dataset(tmp_path)
    episode = source.episode(0)
    assert episode.actions[:, 0].tolist() == [t + 0.5 for t in range(6 if last_sent else 5)]
    assert episode.states[:, 0].tolist() == list(range(6))
    assert episode.extras["policy_action"][:, 3].tolist() == [t + 0.25 for t in range(6)]
    assert episode.extras["world_token"].tolist() == [[t % 3] for t in range(6)]
    assert episode.extras["world_future"].shape == (6, 2, 1)
    for name, size in HEAD.cameras.items():
        frames = episode.frames[name].read()
        assert frames.shape == (6, *size, 3)
        assert [painted.read_index(frame) for frame in frames] == list(range(6))
        assert painted.read_index(episode.frames[name].rows([4])[0]) == 4
        wrong = np.abs(frames[2].astype(int) - painted.paint(2, *size, list(HEAD.cameras).index(name)))
        assert np.percentile(wrong, 90) < 8, "JPEG, in RGB"
    assert source.card.extras == ("late", "policy_action", "seconds", "world_future", "world_token")
    assert (source.card.robot, source.card.actions, episode.instruction) == ("fake", SPEC, "wave")


def test_a_torn_line_is_ignored_and_a_damaged_one_is_not(tmp_path) -> None:
    folder = write(tmp_path)
    path = folder / logs.STEPS
    whole = path.read_text()
    for cut in (1, 40, 200):
        path.write_text(whole[:-cut])
        assert open_dataset(tmp_path).episode(0).num_frames == 5
    lines = whole.splitlines(keepends=True)
    path.write_text("".join([*lines[:3], "{oops\n", *lines[3:]]))
    with pytest.raises(UserError, match="line 4 of"):
        logs.read_steps(folder)


def test_a_gap_in_what_was_sent_is_a_bad_episode(tmp_path) -> None:
    folder = write(tmp_path)
    lines = [json.loads(line) for line in (folder / logs.STEPS).read_text().splitlines()]
    del lines[2]["sent"]
    (folder / logs.STEPS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(BadEpisode, match="nothing was sent after frame 2"):
        open_dataset(tmp_path)


def test_an_empty_log_and_another_robots_are_refused(tmp_path) -> None:
    logs.write_head(tmp_path, HEAD)
    with pytest.raises(UserError, match="holds no step"):
        open_dataset(tmp_path)
    logs.write_head(tmp_path, HEAD)
    with pytest.raises(UserError, match=r"another fps \(10.0, now 30.0\)"):
        logs.write_head(tmp_path, replace(HEAD, fps=30.0))
    assert [logs.next_episode(tmp_path).name for _ in range(2)] == ["episode_000000", "episode_000001"]


def test_a_log_that_cannot_be_written_stops_the_robot_and_is_said(tmp_path, monkeypatch) -> None:
    from worldsim.robots.fake import Fake
    from worldsim.robots.lerobot import LeRobotArm

    class Still:
        def reset(self, seed=None) -> None: ...

        def act(self, observation):
            return observation["agent_pos"][None]

    def full(self, camera, frame):
        if camera == "wrist" and self.films["front"].tell() > 3000:
            raise OSError(28, "No space left on device")
        return picture(self, camera, frame)

    picture = logs.EpisodeLog._picture
    monkeypatch.setattr(logs.EpisodeLog, "_picture", full)
    body = LeRobotArm(Fake.tiny(), 50)
    body.connect()
    logs.write_head(tmp_path, replace(HEAD, cameras=body.cameras))
    episode = logs.next_episode(tmp_path)
    settings = Settings("live", 50, steps=200, late_periods=1e6, hold=0)
    report = Loop(body, Still(), settings, Guard(body.names), logs.EpisodeLog(episode, 5)).run()
    assert report.stopped.by == "log"
    assert "No space left" in report.stopped.sentence
    assert report.held is not None
    assert 0 < len(logs.read_steps(episode)) < 200


def test_the_film_shows_camera_token_and_prediction_of_the_same_step(tmp_path) -> None:
    """Pictures of tokens in plain colours: at step t the panels show those of w_t and of the last prediction."""
    folder = write(tmp_path, steps=20)
    colours = np.array([[230, 20, 20], [20, 230, 20], [20, 20, 230]], np.uint8)
    pictures = np.broadcast_to(colours[:, None, None], (3, 8, 8, 3))
    out = tmp_path / "film.mp4"
    assert film.make(folder, HEAD, out, pictures) == 20
    frames = open_stream(out).read()
    widths = [480, 480, 240, 240, 320]
    assert frames.shape == (20, 262, sum(widths) + 4 * 4, 3)
    lefts = np.cumsum([0, *(width + 4 for width in widths)])
    for t, frame in enumerate(frames):
        assert painted.read_index(frame[22:, :480]) == t
        for left, token in ((lefts[2], t % 3), (lefts[3], (t + 2) % 3)):
            seen = frame[60:200, left + 20 : left + 200].reshape(-1, 3).mean(0)
            assert np.abs(seen - colours[token]).max() < 40
    bright = [(frame[22:, lefts[4] :].max(-1) > 150).mean() for frame in frames]
    assert bright[-1] > bright[5] > bright[0], "the traces grow"


def test_a_film_without_tokens_has_no_such_panels(tmp_path) -> None:
    folder = write(tmp_path, steps=3)
    film.make(folder, HEAD, tmp_path / "film.mp4")
    assert open_stream(tmp_path / "film.mp4").read().shape == (3, 262, 480 + 480 + 320 + 8, 3)
