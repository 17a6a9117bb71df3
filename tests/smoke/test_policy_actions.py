"""infer --actions policy:…: asked beforehand or acting in the dream, with the right frame and state before its eyes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import dreams, painted
from tests.dreams import run_infer
from worldsim.core import registry
from worldsim.core.errors import UserError
from worldsim.core.types import ActionSpec
from worldsim.policies import scripted

JOINTS = ActionSpec(tuple("abcdefg"), ("rad",) * 7, mode="absolute", space="joint", rate=10.0)


class Watcher(scripted._Boxed):
    """Sends ``chunk`` rows from the number that it sees painted on; writes down what it was shown."""

    chunk = 1
    seen: list[dict]

    def act(self, observation):
        at = painted.read_index(next(iter(observation["pixels"].values()))) % 1000
        self.seen.append({**observation, "at": at})
        rows = np.zeros((self.chunk, len(self.low)), np.float32)
        rows[:, 0] = at + np.arange(self.chunk)
        return rows


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> type[Watcher]:
    monkeypatch.setitem(scripted._KINDS, "watcher", Watcher)
    monkeypatch.setattr(Watcher, "seen", [], raising=False)
    return Watcher


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dreams.write_painted(tmp_path_factory.mktemp("painted") / "data", 6, 14)


@pytest.fixture(scope="module")
def joints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, by a robot that is told where its joints are to go."""
    source = painted.PaintedSource(4, 14)
    card = replace(source.card, actions=JOINTS)
    folder = tmp_path_factory.mktemp("joints") / "data"
    writer = registry.get("formats", "act-hdf5").create(folder, card)
    for index in range(4):
        writer.commit(writer.stage(source.episode(index)))
    writer.finalize(card)
    return folder


def files(out: Path) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for path in sorted((out / "frames").glob("*.npz")):
        with np.load(path) as file:
            found[path.stem] = {key: file[key] for key in file.files}
    return found


# --- open loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "sine", "scripted:random,noise=0.8"])
def test_a_blind_policy_is_asked_beforehand(tmp_path, data, models, name) -> None:
    """Its rows lie in the range that the dataset recorded, follow from (seed, episode), and there is no true video."""
    result, context = run_infer(tmp_path / "a", data, frames=7, actions=f"policy:{name}", episodes="all", batch=4)
    assert result.metrics["episodes"] == 6
    run_infer(tmp_path / "b", data, frames=7, actions=f"policy:{name}", episodes="2", batch=1)
    run_infer(tmp_path / "c", data, frames=7, actions=f"policy:{name}", episodes="2", seed=5)
    every = files(tmp_path / "a")
    own = files(tmp_path / "b")["episode_0002"]
    assert np.array_equal(every["episode_0002"]["actions"], own["actions"])
    assert not np.array_equal(files(tmp_path / "c")["episode_0002"]["actions"], own["actions"])
    rows = np.stack([entry["actions"] for entry in every.values()])
    assert rows.shape == (6, 7, 1, 7)
    assert len(np.unique(rows[:, :, 0, 0])) > 6
    assert rows[..., 0].min() >= 0
    assert rows[..., 0].max() <= 18, "the 0th number is the frame's, at most 18 in this set"
    assert all("truth" not in entry for entry in every.values())
    assert any("asked beforehand" in note for note in context.notes)
    assert len(list((tmp_path / "a" / "side_by_side").glob("*.mp4"))) == 6


def test_an_open_loop_begins_with_what_was_sent_before(tmp_path, data, models) -> None:
    """With a delay of 2 rows, the first two rows that act are recorded ones."""
    models["echo"].action_delay = 2
    run_infer(tmp_path, data, frames=4, start=5, actions="policy:sine", episodes="1")
    rows = files(tmp_path)["episode_0001"]["actions"][:, 0]
    assert rows[:2, 0].tolist() == [3, 4]
    assert np.array_equal(rows[0], painted.action_at(3))
    assert rows[2, 0] != 5


# --- closed loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "asked", "calls"), [(1, [4, 5, 6, 7, 8, 9, 10], 7), (3, [4, 7, 10], 3)])
def test_a_policy_sees_the_frame_that_its_last_row_led_to(
    tmp_path, data, models, watcher, monkeypatch, chunk, asked, calls
):
    """Echo paints the number that a row leads to, the policy sends the number that it sees: one slip breaks the chain."""
    monkeypatch.setattr(watcher, "chunk", chunk)
    _, context = run_infer(tmp_path, data, frames=7, start=4, actions="policy:watcher", episodes="0,1")
    for number, entry in enumerate(files(tmp_path).values()):
        assert [painted.read_index(frame) for frame in entry["pred"]] == [1000 * number + t for t in range(4, 12)]
        assert entry["actions"][:, 0, 0].tolist() == list(range(4, 11))
    assert [seen["at"] for seen in watcher.seen[::2]] == asked
    assert len(models["echo"].calls) == calls, "both episodes go through the model together"
    seeds = [tuple(call["seeds"]) for call in models["echo"].calls]
    assert len(set(sum(seeds, ()))) == 2 * calls, "noise is new at every turn and in every episode"
    assert any("acts on the imagined frames" in note for note in context.notes)


def test_the_model_is_shown_its_own_history(tmp_path, data, models, watcher) -> None:
    run_infer(tmp_path, data, frames=4, start=4, actions="policy:watcher", episodes="0")
    shown = [[painted.read_index(frame) for frame in call["context"][0]] for call in models["echo"].calls]
    assert shown == [[2, 3, 4], [3, 4, 5], [4, 5, 6], [5, 6, 7]]


def test_a_closed_loop_does_not_depend_on_company(tmp_path, data, models, watcher) -> None:
    run_infer(tmp_path / "a", data, "noisy", frames=5, actions="policy:random", episodes="all")
    run_infer(tmp_path / "b", data, "noisy", frames=5, actions="policy:random", episodes="3", batch=1)
    assert np.array_equal(files(tmp_path / "a")["episode_0003"]["pred"], files(tmp_path / "b")["episode_0003"]["pred"])


def test_rows_sent_before_the_start_act_first_in_the_dream_too(tmp_path, data, models, watcher) -> None:
    models["echo"].action_delay = 2
    run_infer(tmp_path, data, frames=5, start=5, actions="policy:watcher", episodes="1")
    rows = files(tmp_path)["episode_0001"]["actions"][:, 0, 0].tolist()
    assert rows[:2] == [3, 4], "recorded"
    assert rows[2:] == [seen["at"] for seen in watcher.seen[:3]], "each row acts two rows after it was sent"
    assert watcher.seen[0]["at"] == 5, "it is asked at the given frame, not when the recorded rows are used up"


@pytest.mark.parametrize(("state", "follows"), [("auto", True), ("targets", True), ("start", False)])
def test_the_state_is_the_last_target_of_the_joints(tmp_path, joints, models, watcher, state, follows) -> None:
    run_infer(tmp_path, joints, frames=4, start=3, actions=f"policy:watcher,state={state}", episodes="0")
    start = painted.action_at(3) * 0.5
    assert np.allclose(watcher.seen[0]["agent_pos"], start), "what the dataset recorded"
    for before, seen in zip(watcher.seen, watcher.seen[1:]):
        expected = np.r_[before["at"], np.zeros(6)] if follows else start
        assert np.allclose(seen["agent_pos"], expected)
    assert len(watcher.seen[2]["states"]) == len(next(iter(watcher.seen[2]["frames"].values())))


def test_stacked_cameras_reach_a_policy_apart(tmp_path, data, models, watcher) -> None:
    models["noisy"].height, models["noisy"].width = 128, 128
    try:
        run_infer(
            tmp_path, data, "noisy", frames=1, start=2, actions="policy:watcher", episodes="0", camera="cam_front,cam_top"
        )
    finally:
        models["noisy"].height = models["noisy"].width = 0
    pixels = watcher.seen[0]["pixels"]
    assert list(pixels) == ["cam_front", "cam_top"]
    assert [painted.read_index(view) for view in pixels.values()] == [2, 2]
    assert pixels["cam_top"].shape == (64, 128, 3)
    assert not np.array_equal(pixels["cam_front"], pixels["cam_top"])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"actions": "policy:nobody"}, "no such policy and no such folder"),
        ({"actions": "policy:rando"}, "did you mean 'random'"),
        ({"actions": "policy:wander"}, "a dream is no simulator: .* can be steered"),
        ({"actions": "policy:expert"}, "a dream is no simulator: .*Metaworld"),
        ({"actions": "policy:random,nose=1"}, "nose"),
        ({"actions": "policy:random,state=guess"}, "state=guess is not one of auto, targets, start"),
        ({"actions": "policy:watcher", "permutations": 1}, "permutations = 1"),
        ({"actions": "policy:watcher", "num_samples": 2}, "num_samples = 2"),
    ],
)
def test_what_a_dream_cannot_serve_is_one_sentence(tmp_path, data, models, watcher, values, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        run_infer(tmp_path, data, **values)


def test_a_model_of_latents_and_a_policy_of_actions_do_not_meet(tmp_path, data, models) -> None:
    models["echo"].action_column = "act@0123"
    with pytest.raises(UserError, match="driven by the latents 'act@0123'"):
        run_infer(tmp_path, data, actions="policy:random")


# --- a saved LeRobot policy -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory):
    """A tiny ACT policy in a folder as lerobot-train leaves it, and what it was saved from."""
    from worldsim.latent_actions import _twins

    folder = tmp_path_factory.mktemp("act")
    _, loaded = _twins.act()
    loaded.policy.save_pretrained(folder)
    loaded.preprocessor.save_pretrained(folder)
    loaded.postprocessor.save_pretrained(folder)
    return folder, loaded


def test_a_saved_policy_acts_on_the_dreams_own_frames(tmp_path, joints, models, act) -> None:
    """Its rows are LeRobot's own: pre-processor, predict_action_chunk, post-processor on the imagined frame and state."""
    import torch

    folder, loaded = act
    models["noisy"].height, models["noisy"].width = 128, 128
    try:
        words = {"frames": 6, "start": 3, "episodes": "1", "camera": "cam_front+cam_top"}
        run_infer(tmp_path, joints, "noisy", actions=f"policy:{folder}", **words)
    finally:
        models["noisy"].height = models["noisy"].width = 0
    entry = files(tmp_path)["episode_0001"]
    assert entry["actions"].shape == (6, 1, 7)
    state = painted.action_at(3) * 0.5
    for first in (0, 4):  # n_action_steps is 4: it looks at the given frame, then at the fourth imagined one
        frame = torch.from_numpy(entry["pred"][first]).permute(2, 0, 1)[None].float() / 255
        batch = {
            "observation.images.cam_front": frame[:, :, :64],
            "observation.images.cam_top": frame[:, :, 64:],
            "observation.state": torch.from_numpy(state)[None].float(),
            "task": ["task 1"],
        }
        with torch.no_grad():
            chunk = loaded.policy.predict_action_chunk(loaded.preprocessor(batch))
            rows = loaded.postprocessor(chunk)[0].numpy()
        own = entry["actions"][first : first + 4, 0]
        assert np.allclose(own, rows[: len(own)], atol=1e-6)
        state = own[-1]


def test_what_a_saved_policy_needs_and_a_dream_lacks_is_named(tmp_path, data, joints, models, act) -> None:
    folder, _ = act
    with pytest.raises(UserError, match="robot's state, which a dream does not show") as error:
        run_infer(tmp_path / "a", data, "echo", actions=f"policy:{folder}", camera="cam_front+cam_top")
    assert "state=targets" in str(error.value.command)
    with pytest.raises(UserError, match="sees a camera 'cam_top'"):
        run_infer(tmp_path / "b", joints, "echo", actions=f"policy:{folder}", camera="cam_front")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"type": "vqbet"}')
    with pytest.raises(UserError, match="type 'vqbet' is not known here"):
        run_infer(tmp_path / "c", joints, "echo", actions=f"policy:{tmp_path / 'odd'}")
