"""Every registered environment, through its tiny twin: it is a gymnasium environment and says what its numbers mean."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests import simulators
from worldsim.core import registry
from worldsim.core.protocols import Environment


@pytest.fixture(params=registry.names("envs"))
def env(request: pytest.FixtureRequest):
    env = simulators.tiny(request.param)
    yield env
    env.close()


def episode(env: Environment, seed: int, steps: int = 6) -> list[np.ndarray]:
    """Everything that can be seen in an episode of fixed random actions."""
    rng = np.random.default_rng(5)
    observation, _ = env.reset(seed=seed)
    seen = [observation]
    for _ in range(steps):
        action = rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)
        seen.append(env.step(action)[0])
    truth = [o["environment_state"] for o in seen if "environment_state" in o]  # a dream knows none
    return [array for o in seen for array in (*o["pixels"].values(), o["agent_pos"])] + truth


def test_gymnasium_accepts_it(env):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks about wide boxes; what is wrong raises
        check_env(env, skip_render_check=True)


def test_it_says_what_its_numbers_mean(env):
    assert isinstance(env, Environment)
    observation, info = env.reset(seed=1)
    spec = env.action_spec
    assert spec.dim == len(spec.units) == env.action_space.shape[0]
    assert spec.rate == env.fps > 0
    assert len(env.state_names) == len(observation["agent_pos"])
    assert observation["agent_pos"].dtype == np.float32
    assert env.task_description
    assert info["is_success"] is False
    for frame in observation["pixels"].values():
        assert frame.dtype == np.uint8
        assert frame.ndim == 3
        assert frame.shape[-1] == 3
        assert frame.flags.c_contiguous
    assert type(env.step(env.action_space.sample())[4]["is_success"]) is bool


def test_same_seed_same_episode_whatever_came_before(env):
    first = episode(env, seed=3)
    other = episode(env, seed=4)
    again = episode(env, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0]), "another seed shows another scene"


def test_it_moves_and_the_picture_shows_it(env):
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=2)
    begin = observation
    for _ in range(8):
        observation = env.step(rng.choice([env.action_space.low, env.action_space.high]))[0]
    assert not np.array_equal(begin["agent_pos"], observation["agent_pos"])
    for camera, frame in observation["pixels"].items():
        changed = np.abs(frame.astype(int) - begin["pixels"][camera]).max(-1) > 10
        assert changed.mean() > 0.02
