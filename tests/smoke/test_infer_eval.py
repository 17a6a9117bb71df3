"""infer and eval video end to end: alignment, every file, resume after a kill, alarms, and bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import dreams, moving, painted
from tests.dreams import run_eval, run_infer
from worldsim.commands import eval_video, infer
from worldsim.core.errors import PartialResult, UserError
from worldsim.core.types import ActionSpec
from worldsim.data.predictions import load
from worldsim.data.video import open_stream
from worldsim.formats import open_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dreams.write_painted(tmp_path_factory.mktemp("painted") / "data", 6, 14)


def payload(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- alignment --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "fps", "frames"), [(None, None, 5), (3, None, 1), (2, 5.0, 4), (0, None, 13), (1, 2.5, 2)]
)
def test_frame_k_stands_beside_the_truth_of_its_k_actions(tmp_path, data, models, start, fps, frames) -> None:
    """At every start and stride, first and last frame included; Echo paints the frame that its actions lead to."""
    models["echo"].fps = 0.0
    run_infer(tmp_path, data, episodes="0,3,5", start=start, fps=fps, frames=frames)
    files = sorted((tmp_path / "frames").glob("*.npz"))
    assert len(files) == 3
    stride = 1 if fps is None else round(10 / fps)
    for number, path in zip((0, 3, 5), files):
        p = load(path)
        truth = [painted.read_index(frame) for frame in p.truth]
        assert truth == [1000 * number + (start or 0) + stride * k for k in range(frames + 1)]
        assert [painted.read_index(frame) for frame in p.pred] == truth
        assert p.actions.shape == (frames, stride, 7)
        assert p.actions[:, :, 0].ravel().tolist() == list(range(start or 0, (start or 0) + frames * stride))
        assert np.array_equal(p.pred[0], p.truth[0])


def test_action_delay_shifts_actions_and_moves_the_first_given_frame(tmp_path, data, models) -> None:
    models["echo"].action_delay = 2
    run_infer(tmp_path, data, frames=3, max_episodes=1)
    p = load(next((tmp_path / "frames").glob("*.npz")))
    assert p.frame_index == 2
    assert p.actions[:, 0, 0].tolist() == [0, 1, 2]


def test_the_model_is_shown_history_up_to_the_given_frame(tmp_path, data, models) -> None:
    run_infer(tmp_path, data, frames=2, start=4, episodes="0,1")
    shown = [[painted.read_index(frame) for frame in context] for context in models["echo"].calls[0]["context"]]
    assert shown == [[2, 3, 4], [1002, 1003, 1004]]


def test_a_slip_of_one_frame_is_seen(tmp_path, data, models) -> None:
    """A model that lags by one frame scores what the row of the late truth says, far below the aligned one."""

    class Late(dreams.Echo):
        def rollout(self, context, actions, **more):
            out = super().rollout(context, actions, **more)
            return np.concatenate([np.broadcast_to(context[:, None, -1:], out[:, :, :1].shape), out[:, :, :-1]], axis=2)

    models["late"] = Late()
    result, _ = run_eval(tmp_path, data, "late", frames=6)
    assert result.metrics["model"]["psnr"] == pytest.approx(result.metrics["shifted"]["psnr"])
    assert result.metrics["model"]["psnr"] < 30


# --- infer's files ----------------------------------------------------------------------------------------------------


def test_infer_writes_the_seeds_tree(tmp_path, data, models) -> None:
    result, _ = run_infer(tmp_path, data, frames=5)
    entries = json.loads((tmp_path / "inference" / "metadata.json").read_text())
    assert len(entries) == result.metrics["episodes"] == 2
    for entry in entries:
        assert set(entry) == {"image_path", "file_path", "frame_index", "language"}
        assert (data / entry["file_path"]).exists()
        assert entry["language"].startswith("task")
        stem = Path(entry["image_path"]).stem
        assert stem.endswith("_frame_0")
        image = np.asarray(Image.open(tmp_path / "inference" / entry["image_path"]))
        p = load(tmp_path / "frames" / f"{stem.removesuffix('_frame_0')}.npz")
        assert np.array_equal(image, p.given)
        video = open_stream(tmp_path / "inference" / "videos" / f"{stem}.mp4")
        assert video.shape == (6, 64, 128, 3)
        assert [painted.read_index(f) for f in video.read()] == [painted.read_index(f) for f in p.pred]
        assert len(open_stream(tmp_path / "side_by_side" / f"{stem}.mp4")) == 6


def test_exactly_one_plus_n_frames_for_odd_sizes_and_several_samples(tmp_path, models) -> None:
    folder = dreams.write_painted(tmp_path / "odd", 3, 8, (45, 67))
    run_infer(tmp_path / "out", folder, "noisy", frames=7, num_samples=3, episodes="all")
    for path in (tmp_path / "out" / "frames").glob("*.npz"):
        assert load(path).samples.shape == (3, 8, 45, 67, 3)
    for path in (tmp_path / "out" / "inference" / "videos").glob("*.mp4"):
        assert open_stream(path).shape == (8, 46, 68, 3)


def test_frames_reach_the_model_cut_and_resized_as_in_training(tmp_path, data, models) -> None:
    from worldsim.data.transforms import Cover

    models["echo"].height, models["echo"].width = 48, 48
    run_infer(tmp_path, data, frames=2, episodes="3", camera="cam_front")
    p = load(next((tmp_path / "frames").glob("*.npz")))
    source = open_dataset(data)
    truth = source.episode(3).frames["cam_front"].rows([0, 1, 2])
    assert np.array_equal(p.truth, Cover(48, 48).forward(truth))


def test_noise_belongs_to_the_episode_not_to_the_batch(tmp_path, data, models) -> None:
    """The same seed and episode give the same future in any batch and any selection; another seed gives another."""
    runs = {"a": {"batch": 1}, "b": {"batch": 4, "episodes": "all"}, "c": {"batch": 1, "seed": 1}}
    for name, values in runs.items():
        run_infer(tmp_path / name, data, "noisy", **values)
    for path in (tmp_path / "a" / "frames").glob("*.npz"):
        one = load(path)
        assert np.array_equal(one.pred, load(tmp_path / "b" / "frames" / path.name).pred)
        assert not np.array_equal(one.pred, load(tmp_path / "c" / "frames" / path.name).pred)


def test_permuted_actions_are_another_episodes_and_never_the_own(tmp_path, data, models) -> None:
    run_infer(tmp_path, data, frames=4, episodes="all", permutations=2)
    files = [load(path) for path in sorted((tmp_path / "frames").glob("*.npz"))]
    own = {p.episode: p.actions for p in files}
    for number in range(2):
        takers = [p.permuted_episodes[number] for p in files]
        assert sorted(takers) == sorted(own), "every episode's actions are used once"
    calls = models["echo"].calls  # own, then two permutations, for each batch
    for own_call, *others in (calls[at : at + 3] for at in range(0, len(calls), 3)):
        assert [call["seeds"] for call in others] == [own_call["seeds"]] * 2, "only the actions differ, not the noise"
    for p in files:
        assert p.episode not in p.permuted_episodes
        assert len(set(p.permuted_episodes)) == 2
        for other, actions in zip(p.permuted_episodes, p.permuted_actions):
            assert np.array_equal(actions, own[other])


@pytest.mark.parametrize("killed_after", [0, 3])
def test_a_killed_run_continues_to_the_same_bytes(tmp_path, data, models, monkeypatch, killed_after) -> None:
    values = {"episodes": "all", "batch": 2, "frames": 3, "num_samples": 2}
    run_infer(tmp_path / "whole", data, "noisy", **values)

    written = 0
    real = infer.write_mp4

    def dying(path, frames, fps):
        nonlocal written
        written += 1
        if written > 2 * killed_after + 1:
            raise KeyboardInterrupt
        real(path, frames, fps)

    monkeypatch.setattr(infer, "write_mp4", dying)
    with pytest.raises(KeyboardInterrupt):
        run_infer(tmp_path / "cut", data, "noisy", **values)
    monkeypatch.setattr(infer, "write_mp4", real)
    assert not (tmp_path / "cut" / "inference" / "metadata.json").exists()
    run_infer(tmp_path / "cut", data, "noisy", **values)
    assert payload(tmp_path / "cut") == payload(tmp_path / "whole")


def test_a_finished_episode_is_not_imagined_again(tmp_path, data, models) -> None:
    run_infer(tmp_path, data, episodes="all", batch=2)
    calls = len(models["echo"].calls)
    assert calls == 3
    run_infer(tmp_path, data, episodes="all", batch=2)
    assert len(models["echo"].calls) == calls


# --- actions and mismatches -------------------------------------------------------------------------------------------


def test_actions_from_a_file(tmp_path, data, models) -> None:
    """One sequence for every episode, ``[n, A]``, ``[n, r, A]`` or CSV; there is no truth to compare with."""
    rows = np.stack([painted.action_at(t) for t in range(40, 46)])
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "b.npy", rows[:, None])
    np.savetxt(tmp_path / "c.csv", rows, delimiter=",")
    for name in ("a.npy", "b.npy", "c.csv"):
        run_infer(tmp_path / name.replace(".", "_"), data, frames=5, actions=str(tmp_path / name), start=9)
        with np.load(next((tmp_path / name.replace(".", "_") / "frames").glob("*.npz"))) as file:
            assert "truth" not in file
            assert [painted.read_index(f) % 1000 for f in file["pred"]] == [9, 41, 42, 43, 44, 45]


def test_actions_per_episode_from_one_file(tmp_path, data, models) -> None:
    ids = open_dataset(data).ids()
    np.savez(tmp_path / "a.npz", **{name: np.full((3, 7), 10.0 + k) for k, name in enumerate(ids)})
    run_infer(tmp_path / "out", data, frames=3, actions=str(tmp_path / "a.npz"), episodes="all")
    for k, path in enumerate(sorted((tmp_path / "out" / "frames").glob("*.npz"))):
        with np.load(path) as file:
            assert (file["actions"] == 10 + k).all()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model": "coopy"}, "did you mean 'copy'"),
        ({"camera": "cam_fron"}, "did you mean 'cam_front'"),
        ({"episodes": "99"}, "no episode '99'"),
        ({"episodes": "70:80"}, "selects none"),
        ({"frames": 200}, "none holds frame 0 and 200 more"),
        ({"fps": 3.0}, "does not divide"),
        ({"actions": "nowhere.npy"}, "no such file"),
        ({"actions": "policy:nobody"}, "no such policy and no such folder"),
    ],
)
def test_wrong_values_are_one_sentence(tmp_path, data, models, values, sentence) -> None:
    models["echo"].fps = 0.0
    with pytest.raises(UserError, match=sentence):
        run_infer(tmp_path, data, **{"model": "echo", **values})


@pytest.mark.parametrize(("key", "value"), [("frames", 0), ("batch", 0), ("num_samples", 0), ("permutations", -1)])
def test_numbers_that_count_nothing_are_refused(tmp_path, data, key, value) -> None:
    with pytest.raises(UserError, match=f"{key} must be at least"):
        run_infer(tmp_path, data, **{key: value})


def test_actions_that_mean_something_else_are_refused(tmp_path, data, models) -> None:
    models["echo"].action_spec = ActionSpec.unknown(6, 10.0)
    with pytest.raises(UserError, match=r"differ in dim: 6 and 7"):
        run_infer(tmp_path, data)


def test_too_short_action_file_says_how_many_frames_it_can_give(tmp_path, data, models) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 7), np.float32))
    with pytest.raises(UserError, match="3 action rows; 5 frames") as error:
        run_infer(tmp_path / "out", data, frames=5, actions=str(tmp_path / "a.npy"))
    assert "frames=3" in error.value.command


def test_too_short_episodes_are_named_and_left_out(tmp_path, data, models) -> None:
    """Episode k has 14 + k frames: 16 frames after the given one fit into episodes 3, 4 and 5 only."""
    result, context = run_infer(tmp_path, data, frames=16, episodes="all")
    assert result.metrics["episodes"] == 3
    assert len(result.metrics["too_short"]) == 3
    assert any("too short" in note and result.metrics["too_short"][0] in note for note in context.notes)
    assert len(json.loads((tmp_path / "inference" / "metadata.json").read_text())) == 3


def test_an_undecodable_episode_fails_the_run_after_the_good_ones(tmp_path, models) -> None:
    folder = dreams.write_painted(tmp_path / "data", 4, 8)
    bad = sorted((folder / "episodes").iterdir())[1]
    bad.write_bytes(bad.read_bytes()[:3000])
    with pytest.raises(PartialResult, match=bad.stem) as error:
        run_infer(tmp_path / "out", folder, episodes="all")
    assert error.value.result.metrics["episodes"] == 3
    assert len(list((tmp_path / "out" / "side_by_side").glob("*.mp4"))) == 3
    run_infer(tmp_path / "out-2", folder, episodes="all", max_rejected=1)


# --- eval video -------------------------------------------------------------------------------------------------------


def test_a_perfect_model_and_its_reference_rows(tmp_path, data, models) -> None:
    result, context = run_eval(tmp_path, data, episodes="all", baseline="noisy", frames=6)
    m = result.metrics
    assert (m["episodes"], m["horizon"]) == (6, 6)
    assert m["model"]["psnr"] == m["model"]["motion_psnr"] == 100
    assert m["model"]["ssim"] == pytest.approx(1)
    assert m["copy_last"]["motion_psnr"] < m["model"]["motion_psnr"]
    assert m["baseline"]["psnr"] < m["model"]["psnr"]
    assert any("training part" in note for note in context.notes), "scores of training episodes say so"


def test_the_copy_row_is_the_last_given_frame(tmp_path, data, models) -> None:
    """What the model named ``copy`` scores is exactly the row ``copy_last`` of any other model, history or not."""
    copied, _ = run_eval(tmp_path / "a", data, "copy", start=2)
    echoed, _ = run_eval(tmp_path / "b", data, "echo", start=2)
    assert copied.metrics["model"] == copied.metrics["copy_last"] == echoed.metrics["copy_last"]


def test_a_deaf_model_raises_the_alarm_and_a_following_one_does_not(tmp_path, data, models) -> None:
    class Follower(dreams.Noisy):
        """Moves a square to where the second action number says."""

        def rollout(self, context, actions, *, num_samples=1, seeds=None):
            out = np.repeat(context[:, None, -1:], actions.shape[1], axis=2).copy()
            for b in range(len(context)):
                for k in range(actions.shape[1]):
                    at = round(20 + 15 * float(actions[b, k, -1, 1]))
                    out[b, :, k, 20:30, at : at + 10] = 255
            return out

    folder = tmp_path / "moving"
    _write_moving(folder)
    models["follower"] = Follower()
    good, context = run_eval(tmp_path / "good", folder, "follower", episodes="all", frames=6)
    assert good.metrics["follows_actions"] is True
    assert good.metrics["permutation_gap"] > 1
    assert good.metrics["permutation_p"] < 0.01
    assert not any("IGNORES" in note for note in context.notes)

    deaf, context = run_eval(tmp_path / "deaf", folder, "noisy", episodes="all", frames=6)
    assert deaf.metrics["follows_actions"] is False
    assert deaf.metrics["permutation_gap"] == 0
    assert any("IGNORES ITS ACTIONS" in note and "very same pixels" in note for note in context.notes)
    assert "IGNORES ITS ACTIONS" in (tmp_path / "deaf" / "report" / "index.html").read_text()


def _write_moving(folder: Path) -> None:
    """Twelve episodes in which a square goes where the second action number says, each its own way."""
    from worldsim.core import registry
    from worldsim.core.types import Episode, FrameStream

    card = painted.card(("cam",), (64, 64))
    writer = registry.get("formats", "act-hdf5").create(folder, card)
    for number in range(12):
        rng = np.random.default_rng(number)
        actions = np.zeros((8, 7), np.float32)
        actions[:, 1] = rng.uniform(-1, 1, 8)
        frames = np.full((8, 64, 64, 3), 90, np.uint8)
        for t in range(1, 8):
            at = round(20 + 15 * float(actions[t - 1, 1]))
            frames[t, 20:30, at : at + 10] = 255
        states = np.zeros((8, 7), np.float32)
        one = Episode(f"e{number}", number, "moving", 10.0, {"cam": FrameStream.of(frames)}, actions, states, "move")
        writer.commit(writer.stage(one))
    writer.finalize(card)


def test_scores_can_be_recomputed_from_the_frames_alone(tmp_path, data, models) -> None:
    """scores.json against a plain recomputation from frames/*.npz, and --predictions gives the same table."""
    values = {"episodes": "all", "frames": 5, "num_samples": 2}
    result, _ = run_eval(tmp_path / "a", data, "noisy", **values)
    per_episode = []
    for path in sorted((tmp_path / "a" / "frames").glob("*.npz")):
        with np.load(path) as file:
            samples = file["samples"][:, 1:].astype(float)
            error = ((samples - file["truth"][1:]) ** 2).mean(axis=(2, 3, 4))
        per_episode.append((10 * np.log10(255**2 / error)).mean())
    assert result.metrics["model"]["psnr"] == pytest.approx(np.mean(per_episode))
    scores = json.loads((tmp_path / "a" / "scores.json").read_text())
    cell = scores["summary"]["model"]["psnr"]
    assert cell["low"] <= cell["mean"] <= cell["high"]
    assert np.mean(scores["per_episode"]["model"]["psnr"]) == pytest.approx(cell["mean"])
    assert len(scores["per_horizon"]["model"]["psnr"]) == 5

    again, _ = run_eval(tmp_path / "b", data, predictions=str(tmp_path / "a"), **values)
    assert again.metrics == result.metrics


def test_frames_in_which_nothing_moves_are_left_out_and_counted(tmp_path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    still = np.full((3, 32, 32, 3), 80, np.uint8)
    moved = still.copy()
    moved[2, 5:9, 5:9] = 200
    np.savez(frames / "a.npz", pred=still, truth=moved)
    np.savez(frames / "b.npz", pred=still, truth=still)
    run_eval(tmp_path / "out", Path("unused"), predictions=str(tmp_path))
    cell = json.loads((tmp_path / "out" / "scores.json").read_text())["summary"]["model"]["motion_psnr"]
    assert cell["frames_left_out"] == 3
    assert cell["episodes"] == 1


def test_a_gain_from_flicker_is_called_one(tmp_path, data, models) -> None:
    class Flicker(dreams.Noisy):
        def rollout(self, context, actions, **more):
            out = super().rollout(context, actions, **more)
            out[..., ::2, :, :] = np.clip(out[..., ::2, :, :].astype(int) - 15, 0, 255)
            return out

    folder = tmp_path / "moving"
    _write_moving(folder)
    models["flicker"] = Flicker()
    result, context = run_eval(tmp_path / "out", folder, "flicker", episodes="all", frames=6)
    assert result.metrics["model"]["motion_psnr"] > result.metrics["copy_last"]["motion_psnr"]
    assert any("only the prediction changed" in note for note in context.notes)


def test_a_baseline_that_sees_other_frames_is_refused(tmp_path, data, models) -> None:
    models["wide"] = dreams.Echo()
    models["echo"].height = models["echo"].width = 48
    with pytest.raises(UserError, match="other frames of episode"):
        run_eval(tmp_path / "size", data, baseline="wide")
    models["echo"] = dreams.Echo(fps=5.0)
    with pytest.raises(UserError, match="other frames of episode"):
        run_eval(tmp_path / "rate", data, baseline="wide")


def test_demo_summary_has_the_contracts_keys(tmp_path, data, models) -> None:
    run_eval(tmp_path, data, "noisy", baseline="copy", episodes="all", frames=4)
    summary = eval_video.demo_summary(json.loads((tmp_path / "scores.json").read_text()))
    assert set(summary) == {
        *("episodes", "horizon", "permutation_gap", "permutation_p"),
        *("tuned", "base", "copy_last", "ceiling"),
    }
    for row in ("tuned", "base", "copy_last", "ceiling"):
        assert set(summary[row]) == {"psnr", "ssim", "motion_psnr"}
        assert all(isinstance(value, float) for value in summary[row].values())


def test_eval_continues_after_a_kill_and_can_be_repeated(tmp_path, data, models) -> None:
    run_eval(tmp_path / "a", data, episodes="all", frames=3)
    calls = len(models["echo"].calls)
    shutil.rmtree(tmp_path / "a" / "report")
    (tmp_path / "a" / "scores.json").unlink()
    before = payload(tmp_path / "a")
    run_eval(tmp_path / "a", data, episodes="all", frames=3)
    assert len(models["echo"].calls) == calls
    run_eval(tmp_path / "b", data, episodes="all", frames=3)
    assert payload(tmp_path / "b") == payload(tmp_path / "a")
    assert before.items() <= payload(tmp_path / "a").items()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model": None}, "nothing to score"),
        ({"metrics": ["psnr", "pnsr"]}, "no metric 'pnsr'; did you mean 'psnr'"),
        ({"gap_metric": "ssim", "metrics": ["psnr"]}, "not among the metrics"),
        ({"predictions": "/nowhere"}, "holds no predicted frames"),
    ],
)
def test_eval_refuses_in_one_sentence(tmp_path, data, models, values, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        run_eval(tmp_path / "out", data, **{"model": "echo", **values})


def test_command_line(worldsim, tmp_path, data) -> None:
    code, out, err = worldsim("infer", data, "--model", "copy", "--config", "smoke", "--out", tmp_path / "i", "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["episodes"] == 2
    code, out, err = worldsim(
        "eval", "video", "--predictions", tmp_path / "i", "--config", "smoke", "--out", tmp_path / "e"
    )
    assert code == 0, err
    assert "copy of the given frame" in out
    assert (tmp_path / "e" / "report" / "index.html").exists()
    code, out, err = worldsim("eval", "video", data, "--model", "copy", "--dry-run", "--json", "--config", "smoke")
    assert code == 0, err


# --- what a score may not be ------------------------------------------------------------------------------------------


def test_a_teacher_forced_model_is_not_scored_unless_told_and_then_says_so_everywhere(
    tmp_path, data, models, capsys
) -> None:
    models["echo"].teacher_forced = True
    with pytest.raises(UserError, match="have seen the true frames") as error:
        run_eval(tmp_path / "no", data, episodes="all")
    assert "allow_teacher_forced=true" in error.value.command
    assert not list((tmp_path / "no").rglob("*.npz")), "nothing was imagined"
    result, context = run_eval(tmp_path / "yes", data, episodes="all", allow_teacher_forced=True)
    assert result.metrics["teacher_forced"] is True
    assert any(note.startswith("TEACHER-FORCED") for note in context.notes)
    assert "TEACHER-FORCED" in capsys.readouterr().err
    assert "model (TEACHER-FORCED)" in result.summary
    assert json.loads((tmp_path / "yes" / "scores.json").read_text())["teacher_forced"] is True
    page = (tmp_path / "yes" / "report" / "index.html").read_text()
    assert 'role="alert">TEACHER-FORCED' in page
    assert "model (TEACHER-FORCED)" in page


def test_a_teacher_forced_baseline_is_refused_too(tmp_path, data, models) -> None:
    models["other"] = dreams.Echo()
    models["other"].teacher_forced = True
    with pytest.raises(UserError, match="other is driven by latent actions"):
        run_eval(tmp_path, data, baseline="other")


def test_episodes_that_the_model_has_seen_are_named(tmp_path, data, models) -> None:
    """What the model says it was trained on counts, whatever the dataset's split says."""
    ids = open_dataset(data).ids()
    models["echo"].train_episodes = (ids[3],)
    _, context = run_eval(tmp_path / "seen", data, episodes="2,3")
    assert any("1 of 2 episodes were trained on by this model" in note and ids[3] in note for note in context.notes)
    _, context = run_eval(tmp_path / "fresh", data, episodes="0,1")
    assert not any("trained on" in note or "training part" in note for note in context.notes)


@pytest.fixture
def follower(tmp_path, models) -> Path:
    """A dataset in which actions differ from episode to episode, and ``follower``, a model that does what it is told."""
    models["follower"] = moving.Follower()
    return moving.write(tmp_path / "moving", 8, 6)


def test_the_gap_is_told_per_frame(tmp_path, follower) -> None:
    """Each predicted frame's gap is the mean over episodes of own minus other, with an interval around it."""
    run_eval(tmp_path, follower, "follower", episodes="all", frames=5, metrics=["motion_psnr"])
    scores = json.loads((tmp_path / "scores.json").read_text())
    own, other = (np.array(scores["per_episode"][row]["motion_psnr"], float) for row in ("model", "permuted"))
    told = scores["permutation"]["per_horizon"]
    assert told["mean"] == pytest.approx(np.nanmean(own - other, axis=0))
    assert min(told["mean"]) > 1
    assert all(low <= mean <= high for low, mean, high in zip(told["low"], told["mean"], told["high"]))
    assert "permutation gap ↑" in (tmp_path / "report" / "index.html").read_text()


def test_too_few_episodes_are_no_proof(tmp_path, follower, capsys) -> None:
    result, _ = run_eval(tmp_path, follower, "follower", episodes="0,1,2", frames=5, metrics=["motion_psnr"])
    assert result.metrics["permutation_gap"] > 1
    assert result.metrics["follows_actions"] is False
    assert "NOT SHOWN TO FOLLOW ITS ACTIONS: 3 episodes are too few" in " ".join(
        capsys.readouterr().err.replace("!!", "").split()
    )


def test_actions_stand_under_the_films_that_they_made(tmp_path, follower) -> None:
    """The film of permuted actions has the other episode's trace, all others the episode's own."""
    run_eval(tmp_path, follower, "follower", episodes="all", frames=4, clips=2, metrics=["motion_psnr"])
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count('class="trace"') == 6
    first = page.split('class="card episode"')[1]
    drawn = [part.split("</svg>")[0] for part in first.split('<svg class="trace"')[1:]]
    lines = [part[part.index("<polyline") :] for part in drawn]
    assert lines[0] == lines[1]
    assert lines[0] != lines[2], "another episode's actions are others"
    assert '<span class="key"></span>x</span>' in page, "the line has the name of its action"
    assert (tmp_path / "report" / "contact.png").stat().st_size > 1000
