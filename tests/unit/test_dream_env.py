"""The environment dream: which frame an action leads to, which row acts, whose noise; and the judge that looks at it."""

from __future__ import annotations

import numpy as np
import pytest

from tests import dreams, painted
from tests.dreams import Echo, run_infer
from worldsim.commands import _dream_env, infer
from worldsim.core.errors import UserError
from worldsim.data.scenes import SceneSpec
from worldsim.envs.dream import Dream, Setting
from worldsim.judges.goal_frame import GoalFrame
from worldsim.policies.replay import Replay
from worldsim.rollout import rollout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dreams.write_painted(tmp_path_factory.mktemp("painted") / "data", 3, 10)


def opened(data, monkeypatch, model=None, notes=None, **wanted) -> Dream:
    spec = painted.PaintedSource(1, 4).card.actions
    monkeypatch.setattr(_dream_env, "load_world", lambda name, device: model or Echo(spec))
    remarks = [] if notes is None else notes
    values = {"episodes": "all", **wanted}
    return _dream_env.open_dream(_dream_env.Wanted("echo", data, **values), note=remarks.append)


def test_a_replayed_episode_is_dreamed_frame_by_frame(data, monkeypatch):
    """Echo paints frame t + 1 for action t, so every slip between frames and actions shows."""
    env = opened(data, monkeypatch, judge="goal-frame")
    source = painted.PaintedSource(3, 10)
    for seed in (0, 1, 5):
        episode = source.episode(seed % 3)
        last = episode.num_frames - 1
        recorder = rollout(env, Replay(source), seed=seed, steps=last)
        (name,) = recorder.pixels
        assert np.array_equal(np.stack(recorder.pixels[name]), episode.frames[name].read()[: last + 1]), seed
        truth, judge = episode.frames[name].read(), GoalFrame()
        assert recorder.solved_at == next(t for t in range(1, last + 1) if judge(truth[: t + 1], truth[last]))


def test_rows_under_way_act_first(monkeypatch):
    """With a delay of 2 the dream begins at frame 2, and the rows recorded before it act before any of the policy's."""
    source, acted = painted.PaintedSource(2, 9), []

    def imagine(scene, context, rows, seed, past):
        acted.append((painted.read_index(context[-1]) % 1000, rows[0, 0], len(context)))
        return context[-1:]

    spec = SceneSpec("cam_top", 1, delay=2, history=4)
    low, high = np.full(7, -99.0, np.float32), np.full(7, 99.0, np.float32)
    env = Dream(imagine, Setting(source, [0, 1], spec, low, high, limit=4))
    _, info = env.reset(seed=1)
    assert info["episode"] == source.ids()[1]
    recorded = source.episode(1).actions
    truncated = [env.step(np.full(7, 50.0 + k))[3] for k in range(4)]
    assert [row for _, row, _ in acted] == [recorded[0, 0], recorded[1, 0], 50.0, 51.0]
    assert [t for t, _, _ in acted] == [2] * 4
    assert [length for _, _, length in acted] == [3, 4, 4, 4], "the history grows to what the model wants"
    assert truncated == [False, False, False, True]


def test_a_dream_that_is_told_again_begins_with_recorded_frames():
    """``whole``: the recorded context, every row so far and one noise; what it shows is the last frame."""
    source, asked = painted.PaintedSource(1, 9), []

    def imagine(scene, context, rows, seed, past):
        asked.append((len(context), rows[:, 0].tolist(), seed))
        return np.stack([np.full_like(context[-1], 10 * len(rows) + k) for k in range(len(rows))])

    box = (np.full(7, -99.0, np.float32), np.full(7, 99.0, np.float32))
    env = Dream(imagine, Setting(source, [0], SceneSpec("cam_top", 1), *box, whole=True))
    env.reset(seed=0)
    shown = [int(env.step(np.full(7, float(k)))[0]["pixels"]["cam_top"][0, 0, 0]) for k in range(3)]
    assert [(length, rows) for length, rows, _ in asked] == [(1, [0.0]), (1, [0.0, 1.0]), (1, [0.0, 1.0, 2.0])]
    assert len({seed for *_, seed in asked}) == 1
    assert shown == [10, 21, 32]


def test_anywhere_begins_where_the_seed_draws(monkeypatch):
    source = painted.PaintedSource(1, 30)
    spec = SceneSpec("cam_top", 1, history=2)
    box = (np.full(7, -1.0, np.float32), np.full(7, 1.0, np.float32))
    env = Dream(lambda scene, context, rows, seed, past: context[-1:], Setting(source, [0], spec, *box, anywhere=True))
    begins = [painted.read_index(env.reset(seed=seed)[0]["pixels"]["cam_top"]) % 1000 for seed in range(12)]
    assert begins == [painted.read_index(env.reset(seed=seed)[0]["pixels"]["cam_top"]) % 1000 for seed in range(12)]
    assert len(set(begins)) > 5
    assert max(begins) < 29, "an action and a frame are left"


class Drift:
    """Every pixel moves on by the first action and by noise of its seed; what a model's answer depends on, and nothing else."""

    height, width, fps, context_frames, action_delay = 64, 128, 10.0, 3, 0
    action_spec = painted.PaintedSource(1, 4).card.actions

    def rollout(self, context, actions, *, num_samples=1, seeds=None):
        out = np.empty((len(context), num_samples, actions.shape[1], *context.shape[2:]), np.uint8)
        for b, seed in enumerate(seeds):
            frame = context[b, 0].astype(int) // 2 + context[b, -1] // 2
            for k in range(actions.shape[1]):
                frame = frame + int(actions[b, k, -1, 0]) + seed % 7
                out[b, :, k] = frame % 256
        return out


def test_infer_imagines_the_same_dream(data, monkeypatch, tmp_path):
    """A policy that looks acts in ``infer``'s closed loop and in the environment: the same frames and rows, bit for bit."""
    from worldsim.policies import scripted

    class Looker(scripted._Boxed):
        def row(self, observation):
            mean = float(next(iter(observation["pixels"].values())).mean())
            return np.full(len(self.low), mean / 16)

    monkeypatch.setitem(scripted._KINDS, "looker", Looker)
    monkeypatch.setattr(infer, "load", lambda name, device: Drift())
    run_infer(tmp_path, data, "drift", episodes="0", frames=6, actions="policy:looker", save_frames=True)
    (file,) = (tmp_path / "frames").glob("*.npz")
    with np.load(file) as saved:
        pred, rows = saved["pred"], saved["actions"]
    env = opened(data, monkeypatch, Drift())
    recorder = rollout(env, Looker(env), seed=0, steps=6)
    (frames,) = recorder.pixels.values()
    assert np.array_equal(np.stack(frames), pred)
    assert np.allclose(np.stack(recorder.actions), rows.reshape(6, -1))
    assert np.ptp(rows) > 0


def test_what_a_dream_cannot_be_made_of_is_said(data, monkeypatch):
    spec = painted.PaintedSource(1, 4).card.actions
    with pytest.raises(UserError, match="takes 2 actions"):
        opened(data, monkeypatch, Echo(spec, fps=5.0))
    with pytest.raises(UserError, match="follows no actions"):
        opened(data, monkeypatch, Echo(None))
    with pytest.raises(UserError, match="there is no judge named 'goal-fram'; did you mean 'goal-frame'"):
        opened(data, monkeypatch, judge="goal-fram")
    notes: list[str] = []
    env = opened(data, monkeypatch, notes=notes)
    assert any("no judge" in note for note in notes)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[4]["is_success"] is False


def test_the_judge_knows_its_extremes():
    rng = np.random.default_rng(0)
    start, goal = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    goal[:8] = start[:8]
    judge = GoalFrame()
    near = (start.astype(float) / 4 + goal.astype(float) * 3 / 4).astype(np.uint8)
    assert judge(np.stack([start, goal]), goal)
    assert judge(np.stack([start, near]), goal), "a quarter of the way left is a sixteenth of the squared distance"
    assert not judge(np.stack([start, start]), goal)
    assert not judge(np.stack([start, 255 - goal]), goal)
    assert not judge(np.stack([start, start]), start), "a scene that is its own goal is never done"
    white, black = np.full((16, 16, 3), 200, np.uint8), np.zeros((16, 16, 3), np.uint8)
    for left, done in ((100, True), (101, False)):  # half of the distance is a quarter of its square
        assert judge(np.stack([white, np.full_like(black, left)]), black) is done
    elsewhere = goal.copy()
    elsewhere[:8] = 255 - goal[:8]
    assert judge(np.stack([start, elsewhere]), goal), "only where start and goal differ"
