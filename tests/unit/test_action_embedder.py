"""Which action reaches which latent: off by one here is invisible in a loss curve."""

from __future__ import annotations

import pytest
import torch

from worldsim.core.errors import UserError
from worldsim.nn.action_embedder import ActionEmbedder

K, R, A, D = 3, 2, 5, 8


@pytest.fixture
def embedder() -> ActionEmbedder:
    """An embedder whose zero-initialised parts have been moved, as training does."""
    torch.manual_seed(0)
    module = ActionEmbedder(rows=4 * R, action_dim=A, dim=D, hidden=16)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.fixture
def actions() -> torch.Tensor:
    return torch.randn(2, 4 * K, R, A, generator=torch.Generator().manual_seed(1))


def test_starts_at_zero(actions):
    fresh = ActionEmbedder(rows=4 * R, action_dim=A, dim=D, hidden=16)
    assert torch.equal(fresh(actions), torch.zeros(2, 1 + K, D))


@pytest.mark.parametrize("t", range(4 * K))
def test_action_t_reaches_latent_t_over_4_plus_1_alone(embedder, actions, t):
    moved = actions.clone()
    moved[:, t] += 1.0
    changed = (embedder(moved) != embedder(actions)).any(dim=-1)
    expected = torch.zeros(2, 1 + K, dtype=torch.bool)
    expected[:, t // 4 + 1] = True
    assert torch.equal(changed, expected)


def test_order_counts(embedder, actions):
    """The same rows in another order, within one group and within one frame, are another movement."""
    for permuted in (actions.flip(1), actions[:, [1, 0, *range(2, 4 * K)]], actions.flip(2)):
        assert not torch.allclose(embedder(permuted), embedder(actions))


def test_dropped_clips_get_null_and_given_latents_stay_given(embedder, actions):
    dropped = torch.tensor([True, False])
    out = embedder(actions, dropped=dropped)
    assert torch.allclose(out[0, 1:], embedder.null.expand(K, D))
    assert torch.equal(out[:, 0], embedder.given.expand(2, D))
    assert torch.equal(out[1], embedder(actions)[1])


def test_history_hides_the_actions_that_led_to_it(embedder, actions):
    out = embedder(actions, history=torch.tensor([1, 3]))
    plain = embedder(actions)
    assert torch.equal(out[0], plain[0])
    assert torch.equal(out[1, :3], embedder.given.expand(3, D))
    assert torch.equal(out[1, 3:], plain[1, 3:])


def test_every_parameter_gets_a_gradient(embedder, actions):
    embedder(actions, dropped=torch.tensor([True, False])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in embedder.parameters())


def test_an_incomplete_group_is_refused(embedder):
    with pytest.raises(UserError, match="groups of 8"):
        embedder(torch.zeros(1, 11, R, A))


def test_running_sums_look_back_only():
    torch.manual_seed(0)
    embedder = ActionEmbedder(4, 2, 8, 16, sums=True)
    torch.nn.init.normal_(embedder.net[-1].weight)
    actions = torch.randn(1, 16, 1, 2)
    before = embedder(actions)
    for t in range(16):
        changed = actions.clone()
        changed[:, t] += 1.0
        moved = (embedder(changed) != before).any(-1)[0]
        first = t // 4 + 1
        assert not moved[:first].any(), f"action {t} reached a latent before {first}"
        assert moved[first:].all(), f"action {t} must be felt in every latent from {first} on"


def test_running_sums_tell_where_differences_led():
    """Two groups with equal rows differ only by what came before them."""
    torch.manual_seed(0)
    actions = torch.ones(1, 8, 1, 1)
    for sums, equal in ((False, True), (True, False)):
        embedder = ActionEmbedder(4, 1, 8, 16, sums=sums)
        torch.nn.init.normal_(embedder.net[-1].weight)
        out = embedder(actions)
        assert torch.equal(out[:, 1], out[:, 2]) is equal


@pytest.mark.parametrize("sums", [False, True])
def test_rows_that_led_to_given_frames_move_nothing(sums):
    """Per clip: with one given latent all rows count, with three those of the first two groups do not."""
    torch.manual_seed(0)
    embedder = ActionEmbedder(4 * R, A, D, 16, sums=sums)
    torch.nn.init.normal_(embedder.net[-1].weight)
    actions, other = torch.randn(2, 4 * K, R, A), torch.randn(2, 4 * K, R, A)
    history = torch.tensor([1, 3])
    led = actions.clone()
    led[:, :8] = other[:, :8]
    moved = (embedder(led, history) != embedder(actions, history)).any(-1)
    assert moved.tolist() == [[False, True, True, sums], [False] * 4]
    assert torch.equal(embedder(led, 3), embedder(actions, 3))
    ahead = actions.clone()
    ahead[:, 8:] = other[:, 8:]
    assert (embedder(ahead, history) != embedder(actions, history)).any(-1)[:, 3].all()
