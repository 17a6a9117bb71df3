"""What every registered world model must do, on its tiny twin: any horizon, any seed, the same answer twice."""

from __future__ import annotations

import numpy as np
import pytest

from worldsim.commands._world import tiny_world
from worldsim.core import registry
from worldsim.core.errors import UserError
from worldsim.world_models import SupportsReconstruct, SupportsSampling, needs

TOKENS = ("token-ar/fsq-frame", "token-ar/fsq-compressive")
NAMES = [name for name in registry.names("world_models") if name != "token-ar"]


@pytest.fixture(scope="module", params=[*NAMES, *TOKENS])
def model(request: pytest.FixtureRequest):
    name, _, tokenizer = request.param.partition("/")
    return tiny_world(name, tokenizer)


def scene(model, batch: int = 2, n: int = 5, history: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth context ``[B, T0, H, W, 3]`` and actions ``[B, n, 1, A]`` of the model's own sizes."""
    height, width = model.height or 32, model.width or 48
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, width)[None, None, None, :, None] + 55 * rng.random((batch, history, 1, 1, 3))
    context = np.broadcast_to(ramp, (batch, history, height, width, 3)).astype(np.uint8)
    dim = model.action_spec.dim if model.action_spec else 2
    return context, rng.uniform(-1, 1, (batch, n, 1, dim)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 4, 5, 11])
def test_exactly_n_frames_for_n_actions(model, n: int) -> None:
    context, actions = scene(model, n=n)
    out = model.rollout(context, actions, num_samples=2, seeds=[0, 1])
    assert out.shape == (2, 2, n, *context.shape[2:])
    assert out.dtype == np.uint8


@pytest.mark.parametrize("history", [1, 2, 5, 9])
def test_any_history_is_taken(model, history: int) -> None:
    context, actions = scene(model, history=history, n=2)
    assert model.rollout(context, actions, seeds=[0, 1]).shape[2] == 2


def test_the_same_seed_gives_the_same_future_and_leaves_its_inputs_alone(model) -> None:
    context, actions = scene(model)
    before = context.copy(), actions.copy()
    first = model.rollout(context, actions, num_samples=2, seeds=[7, 8])
    again = model.rollout(context, actions, num_samples=2, seeds=[7, 8])
    assert np.array_equal(first, again)
    assert np.array_equal(context, before[0])
    assert np.array_equal(actions, before[1])


def test_a_sample_does_not_depend_on_how_many_there_are_or_who_else_is_in_the_batch(model) -> None:
    """Up to the last bit of floating-point sums, which may round a pixel differently."""
    context, actions = scene(model)
    many = model.rollout(context, actions, num_samples=3, seeds=[7, 8]).astype(int)
    one = model.rollout(context[1:], actions[1:], num_samples=1, seeds=[8]).astype(int)
    assert np.abs(many[1, 0] - one[0, 0]).max() <= 1


def test_actions_matter_unless_the_model_says_that_it_ignores_them(model) -> None:
    context, actions = scene(model)
    changed = not np.array_equal(
        model.rollout(context, actions, seeds=[0, 1]), model.rollout(context, -actions, seeds=[0, 1])
    )
    assert changed == (model.action_spec is not None)


def test_wrong_shapes_are_the_users_to_mend(model) -> None:
    context, actions = scene(model)
    with pytest.raises(UserError):
        model.rollout(context[0], actions)
    with pytest.raises(UserError):
        model.rollout(context, actions[:1])


def test_needs_are_stated(model) -> None:
    wants = needs(model)
    assert wants.context_frames >= 1
    assert wants.height >= 0
    assert wants.fps >= 0
    assert (wants.height == 0) == (wants.width == 0)


@pytest.mark.parametrize("length", [1, 4, 9])
def test_a_codec_reconstructs_any_length(model, length: int) -> None:
    if isinstance(model, SupportsReconstruct):
        frames = scene(model, history=length)[0]
        out = model.reconstruct(frames)
        assert out.shape == frames.shape
        assert out.dtype == np.uint8


def test_sampling_can_be_changed_and_none_keeps_it(model) -> None:
    if isinstance(model, SupportsSampling):
        context, actions = scene(model)
        before = model.rollout(context, actions, seeds=[0, 1])
        model.set_sampling(None, None)
        assert np.array_equal(model.rollout(context, actions, seeds=[0, 1]), before)
        with pytest.raises(UserError):
            model.set_sampling(steps=0)
