"""LeRobot policies act as LeRobot itself lets them; replays send what was recorded; what does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import modality_twins, painted, simulators, trained_policies
from worldsim import policies
from worldsim.commands import _policy
from worldsim.core.errors import UserError
from worldsim.core.types import ActionSpec, PolicyNeeds
from worldsim.latent_actions import _twins
from worldsim.policies import _world_modality_files as files
from worldsim.policies.lerobot import LeRobot
from worldsim.policies.replay import Replay
from worldsim.rollout import rollout

STEPS = 9
CAMERAS = ("cam_top", "cam_front")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """ACT (chunks of 4, one observation) and diffusion (chunks of 4, two observations), as lerobot-train leaves them."""
    out = {}
    for name in ("act", "diffusion"):
        folder = tmp_path_factory.mktemp(name)
        loaded = getattr(_twins, name)()[1]
        for part in (loaded.policy, loaded.preprocessor, loaded.postprocessor):
            part.save_pretrained(folder)
        out[name] = folder
    return out


def seen(episode, t: int) -> dict:
    """What an environment shows at frame t."""
    return {"pixels": {name: episode.frames[name].rows([t])[0] for name in CAMERAS}, "agent_pos": episode.states[t]}


def ours(policy, episode, seed: int = 3) -> np.ndarray:
    policy.reset(seed)
    rows: list[np.ndarray] = []
    for t in range(STEPS):
        if t >= len(rows):
            rows.extend(policy.act(seen(episode, t)))
        elif policy.stepwise:
            raise AssertionError("a policy that looks back must be asked at every frame")
    return np.stack(rows[:STEPS])


@pytest.mark.parametrize("changes", [{}, {"n_action_steps": 1, "temporal_ensemble_coeff": 0.01}], ids=["chunks", "blended"])
def test_act_acts_as_in_lerobot(saved, tmp_path, changes):
    """``select_action`` of LeRobot's own loader, step by step with its own pipelines, gives the same bits."""
    folder = shutil.copytree(saved["act"], tmp_path / "act")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    theirs, before, after = trained_policies.as_lerobot_loads(folder)
    theirs.reset()
    episode, rows = painted.episode(num_frames=STEPS), []
    for t in range(STEPS):
        batch = {"observation.state": torch.from_numpy(episode.states[t : t + 1]).float(), "task": [""]}
        for name in CAMERAS:
            frame = torch.from_numpy(episode.frames[name].rows([t])).permute(0, 3, 1, 2).float() / 255
            batch[f"observation.images.{name}"] = frame.contiguous()
        with torch.no_grad():
            rows.append(after(theirs.select_action(before(batch)))[0].numpy())
    policy = _policy.open_policy(folder)
    assert isinstance(policy, LeRobot)
    assert np.array_equal(ours(policy, episode), np.stack(rows))
    assert len(policy.act(seen(episode, 0))) == (1 if changes else 4)


def test_diffusion_sees_every_frame_and_its_noise_follows_the_seed(saved):
    policy, episode = policies.load(saved["diffusion"]), painted.episode(num_frames=STEPS)
    first, state = ours(policy, episode), torch.get_rng_state()
    assert np.array_equal(first, ours(policy, episode)), "same seed, same actions"
    assert np.array_equal(state.numpy(), torch.get_rng_state().numpy()), "nobody else's noise is touched"
    assert not np.array_equal(first, ours(policy, episode, seed=4))
    theirs = trained_policies.as_lerobot_loads(saved["diffusion"])[0]
    assert policy.loaded.policy.config.n_obs_steps == 2
    other = painted.episode(num_frames=STEPS)
    states = other.states.copy()
    states[3] += 5.0  # between two looks: asked at 0, 4 and 8 with the frames 3 and 4 before its eyes
    other.states = states
    changed = np.abs(ours(policy, other) - first).max(axis=1) > 0
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False]
    assert theirs.config.n_action_steps == 4


def test_forks_of_a_policy_with_queues_do_not_disturb_each_other(saved):
    policy, episode = policies.load(saved["diffusion"]), painted.episode(num_frames=STEPS)
    alone = ours(policy, episode)
    one, two = policy.fork(), policy.fork()
    one.reset(3), two.reset(9)
    rows = []
    for t in range(STEPS):
        rows.extend(one.act(seen(episode, t)))
        two.act(seen(episode, STEPS - 1 - t))
    assert np.array_equal(np.stack(rows), alone)


def test_an_epochs_file_acts_as_its_run(tmp_path):
    """``logs/model_C_hist_epoch3.pt`` with the tokenizer of the run that it lies in."""
    env = simulators.tiny("pusht")
    run = modality_twins.write(tmp_path / "run", env)
    net, card = files.read(run)
    path = files.epoch_file(run, "C_hist", 3)
    path.parent.mkdir()
    files.write_epoch(path, net, {}, card, {"centroids": torch.zeros(1, 1)})
    both = [rollout(env, _policy.open_policy(source, env), seed=4, steps=6).actions for source in (run, path)]
    assert np.array_equal(*both)
    assert np.ptp(both[0], axis=0).max() > 0


def test_a_replay_sends_what_was_recorded_and_then_holds():
    source = painted.PaintedSource(3, 6)
    spec = replace(source.card.actions, mode="absolute")
    source.card = replace(source.card, actions=spec)
    policy = Replay(source, source.ids()[1])
    policy.reset(7)
    recorded = source.episode(1).actions
    rows = np.concatenate([policy.act({}) for _ in range(len(recorded) + 2)])
    assert np.array_equal(rows[: len(recorded)], recorded.astype(np.float32))
    assert np.array_equal(rows[len(recorded) :], rows[len(recorded) - 1 : len(recorded)].repeat(2, 0))
    assert policy.finished
    policy.spec = replace(spec, mode="delta", gripper=6)
    held = policy.act({})[0]
    assert not held[:6].any()
    assert held[6] == recorded[-1, 6]
    every = Replay(source)
    every.reset(5)
    assert np.array_equal(every.act({})[0], source.episode(2).actions[0].astype(np.float32)), "episode 5 modulo 3"
    with pytest.raises(UserError, match="no episode 'painted'"):
        Replay(source, "painted")


def test_a_lerobot_policy_acts_in_an_environment_through_the_rollout(tmp_path):
    """Also: the camera's other name is refused with the option that mends it, and with it the actions are the same."""
    env = simulators.tiny("pusht")
    twin = LeRobot.tiny(env)
    for part in (twin.loaded.policy, twin.loaded.preprocessor, twin.loaded.postprocessor):
        part.save_pretrained(tmp_path)
    plain = rollout(env, _policy.open_policy(tmp_path, env), seed=1, steps=5)
    assert np.array_equal(plain.actions[0], rollout(env, twin, seed=1, steps=1).actions[0])
    other = simulators.tiny("pusht")
    other.observation_space["pixels"].spaces["above"] = other.observation_space["pixels"].spaces.pop("top")
    other.camera = "above"
    with pytest.raises(UserError, match=r"sees a camera 'top', .* shows above") as refused:
        _policy.open_policy(tmp_path, other)
    assert refused.value.command == "again rename.top=above"
    renamed = rollout(other, _policy.open_policy(tmp_path, other, rename={"top": "above"}), seed=1, steps=5)
    assert np.array_equal(renamed.actions, plain.actions)
    with pytest.raises(UserError, match=r"rename.front: the policy has no such camera; it has top"):
        _policy.open_policy(tmp_path, other, rename={"front": "above"})


MINE = PolicyNeeds({"top": (32, 32)}, ("x", "y"), ActionSpec(("a", "b"), ("px", "px"), mode="delta", rate=10.0), 10.0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cameras": {"wrist": (32, 32)}}, "sees a camera 'wrist', the plane shows top"),
        ({"state_names": ("x",)}, "reads a state of 1 numbers, the plane has 2: x, y"),
        ({"state_names": ("u", "v")}, "reads the state u, v, the plane has x, y"),
        (
            {"fps": 30.0, "action_spec": replace(MINE.action_spec, rate=30.0)},
            "30 observations per second, the plane gives 10",
        ),
        ({"action_spec": replace(MINE.action_spec, names=("a", "c"))}, r"differ in names"),
        ({"action_spec": replace(MINE.action_spec, mode="absolute")}, r"differ in mode"),
        (
            {"action_spec": replace(MINE.action_spec, units=("px", "m"))},
            "the action 'b' of mine is in m, that of the plane in px",
        ),
        ({"action_spec": ActionSpec.unknown(3, 10.0)}, "differ in dim: 3 and 2"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, sentence):
    class Plane:
        fps, state_names, action_spec = 10.0, ("x", "y"), MINE.action_spec
        cameras = {"top": (64, 64)}

    _policy.require_fit(MINE, Plane(), "mine", "the plane")
    unknown = replace(MINE, state_names=("state_0", "state_1"), action_spec=ActionSpec.unknown(2, 0.0), fps=0.0)
    _policy.require_fit(unknown, Plane(), "mine", "the plane")
    with pytest.raises(UserError, match=sentence):
        _policy.require_fit(replace(MINE, **change), Plane(), "mine", "the plane")


def test_texts_that_name_no_policy_are_explained(tmp_path):
    with pytest.raises(UserError, match="no kind of policy 'scriptd'; did you mean 'scripted'"):
        policies.load("scriptd:push")
    with pytest.raises(UserError, match="there is no policy 'nowhere'"):
        policies.load("nowhere")
    with pytest.raises(UserError, match="needs an environment"):
        policies.load("scripted:push")
    plane = simulators.tiny("pusht")
    with pytest.raises(UserError, match="the scripted policy 'push' has no option 'sped'; did you mean 'speed'"):
        policies.load("scripted:push,sped=3", env=plane)
    with pytest.raises(UserError, match="has no option 'speed'; known: noise, rate"):
        policies.load("scripted:random,speed=3", env=plane)
    for wrong in ("noise=much", "noise=true", "noise=-1", "rate=nan", "rate=3"):  # rate 3 would be NaN on every joint
        with pytest.raises(UserError, match=f"scripted:random: {wrong.partition('=')[0]}="):
            policies.load(f"scripted:random,{wrong}", env=plane)
    assert policies.load("scripted:push,noise=0.2,speed=1", env=plane).noise == 0.2
    (tmp_path / "config.yaml").write_text("command: train\n")
    with pytest.raises(UserError, match="unfinished run"):
        policies.load(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(UserError, match="trained nothing"):
        policies.load(tmp_path)
