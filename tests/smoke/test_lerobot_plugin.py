"""A world-modality policy inside LeRobot: the same actions as here, and LeRobot's own evaluation program runs it."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from tests import modality_twins, simulators
from worldsim.commands import _policy, models_export
from worldsim.core.errors import UserError
from worldsim.core.runs import RunContext

LEROBOT_EVAL = (
    "--x.discover_packages_path=worldsim.lerobot_plugin",
    "--env.type=pusht",
    "--env.episode_length=6",
    "--env.observation_height=64",
    "--env.observation_width=64",
    "--env.visualization_height=128",
    "--env.visualization_width=128",
    "--eval.n_episodes=2",
    "--eval.batch_size=2",
    "--eval.use_async_envs=false",
    "--policy.device=cpu",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The export of a policy whose camera 'top' LeRobot's Push-T calls ``observation.image``, and its run folder."""
    out = tmp_path_factory.mktemp("lerobot")
    run = modality_twins.write(out / "run", simulators.make("pusht", size=64))
    config = models_export.Config(model=str(run), to="lerobot", features={"top": "observation.image"})
    (out / "export").mkdir()
    result = models_export.run(config, RunContext("models-export", out / "export"))
    assert {"config.json", "model.safetensors", "card.json", "policy_preprocessor.json"} <= set(result.metrics["files"])
    return out / "export", run


def test_lerobots_batches_get_the_same_actions(exported):
    """Two environments in one batch through LeRobot's own pipelines; each alone through the policy itself, chunk by chunk."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import get_policy_class, make_pre_post_processors

    import worldsim.lerobot_plugin  # noqa: F401 (registers the policy)

    folder, run = exported
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    before, after = make_pre_post_processors(config, pretrained_path=str(folder))
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (7, 2, 64, 64, 3), np.uint8)
    states = rng.uniform(0, 512, (7, 2, 2)).astype(np.float32)
    policy.reset()
    got = []
    for pixels, state in zip(frames, states):
        image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        got.append(
            after(policy.select_action(before({"observation.image": image, "observation.state": torch.tensor(state)})))
        )
    for b in range(2):
        alone = _policy.open_policy(str(run))
        alone.reset(0)
        chunk: list[np.ndarray] = []
        for t in range(7):
            seen = {"pixels": {"top": frames[t, b]}, "agent_pos": states[t, b]}
            if chunk:
                alone.observe(seen)
            else:
                chunk = list(alone.act(seen))
            assert np.array_equal(got[t][b].numpy(), chunk.pop(0)), (t, b)


def test_lerobot_eval_runs_it(exported, tmp_path, monkeypatch):
    """In this process, because the program's imports take most of its time."""
    from lerobot.scripts import lerobot_eval

    words = ["lerobot-eval", *LEROBOT_EVAL, f"--policy.path={exported[0]}", f"--output_dir={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(lerobot_eval, "init_logging", lambda: None)  # it would take the test runner's handlers away
    lerobot_eval.main()
    info = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2
    assert len(list((tmp_path / "out" / "videos").rglob("*.mp4"))) == 2


def test_what_cannot_be_exported_is_said(tmp_path, exported):
    context = RunContext("models-export", tmp_path)
    with pytest.raises(UserError, match=r"features.left: the policy has no such camera; it has top"):
        models_export.run(models_export.Config(model=str(exported[1]), to="lerobot", features={"left": "x"}), context)
    (tmp_path / "o").mkdir()
    (tmp_path / "card.json").write_text('{"world_model": "wan"}')
    with pytest.raises(UserError, match="no world-modality policy"):
        models_export.run(
            models_export.Config(model=str(tmp_path), to="lerobot"), RunContext("models-export", tmp_path / "o")
        )
