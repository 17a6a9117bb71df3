"""GRPO's arithmetic against hand-worked cases and against the plain policy gradient."""

from __future__ import annotations

import pytest
import torch

from worldsim.rl.objectives import advantages, group_std, k3, objective, per_token, returns, token_mean


def drawn(seed: int = 0, shape: tuple[int, ...] = (3, 5, 7)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_advantages_are_unbiased_z_scores_of_a_group() -> None:
    found = advantages(torch.tensor([[[1.0], [2.0], [3.0], [6.0]]], dtype=torch.float64))
    std = (14 / 3) ** 0.5  # squares 4 + 1 + 0 + 9 over n - 1
    expected = torch.tensor([-2.0, -1.0, 0.0, 3.0], dtype=torch.float64) / (std + 1e-6)
    torch.testing.assert_close(found[0, :, 0], expected)


@pytest.mark.parametrize("value", [0.1, 1 / 3, -1e-3, 7.7])
@pytest.mark.parametrize("n", [2, 3, 7, 16])
def test_equal_rewards_give_exactly_nothing(value: float, n: int) -> None:
    rewards = torch.full((2, n, 3), value)
    for per_frame in (False, True):
        assert not advantages(returns(rewards, per_frame)).any()
        assert not advantages(returns(rewards, per_frame), torch.tensor(0.5)).any()


def test_advantages_do_not_depend_on_scale_shift_or_on_sum_versus_mean() -> None:
    rewards = drawn(shape=(2, 6, 4))
    base = advantages(returns(rewards))
    torch.testing.assert_close(advantages(returns(3 * rewards + 5)), base, atol=1e-5, rtol=1e-5)
    total = rewards.sum(-1, keepdim=True).expand_as(rewards)
    torch.testing.assert_close(advantages(total), base, atol=1e-5, rtol=1e-5)


def test_groups_do_not_see_each_other_unless_the_deviation_is_shared() -> None:
    rewards = drawn(1, (4, 6, 2))
    values = returns(rewards)
    torch.testing.assert_close(advantages(values)[1:2], advantages(values[1:2]))
    shared = group_std(values).mean()
    torch.testing.assert_close(advantages(values, shared) * (shared + 1e-6), values - values.mean(1, keepdim=True))


def test_reward_to_go_leaves_out_what_was_finished_before() -> None:
    rewards = torch.tensor([[[1.0, 2.0, 6.0]]])
    assert returns(rewards).tolist() == [[[3.0, 3.0, 3.0]]]
    assert returns(rewards, per_frame=True).tolist() == [[[3.0, 4.0, 6.0]]]
    assert returns(rewards, per_frame=True, discount=0.0).tolist() == rewards.tolist()
    torch.testing.assert_close(returns(rewards, True, 0.5), torch.tensor([[[3.5 / 1.75, 5 / 1.5, 6.0]]]))
    earlier = drawn(2, (1, 4, 3))
    later = earlier.clone()
    later[..., 0] += torch.arange(4.0)  # only the first frame's rewards differ
    moved = advantages(returns(later, True)) - advantages(returns(earlier, True))
    assert moved[..., 0].any()
    assert not moved[..., 1:].any()


def test_k3_is_zero_and_flat_at_the_reference_and_positive_elsewhere() -> None:
    reference = drawn(3)
    log_probs = reference.clone().requires_grad_()
    k3(log_probs, reference).sum().backward()
    assert not k3(reference, reference).any()
    assert not log_probs.grad.any()
    assert (k3(reference + 0.3, reference) > 0).all()
    assert (k3(reference - 0.3, reference) > 0).all()
    assert k3(torch.tensor(-50.0), torch.tensor(0.0)) == 10
    expected = torch.tensor(0.5).exp() - 1.5
    torch.testing.assert_close(k3(torch.tensor(-1.0), torch.tensor(-0.5)), expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.1, 1.0, -1.1, True),  # inside the clip
        (1.5, 1.0, -1.2, False),  # a good token has been pushed enough
        (0.5, 1.0, -0.5, True),  # a good token that became rarer may come back
        (0.5, -1.0, 0.8, False),  # a bad token has been pushed enough
        (1.5, -1.0, 1.5, True),  # a bad token that became likelier must go back …
        (4.0, -1.0, 3.0, False),  # … but not beyond the dual clip
        (4.0, 1.0, -1.2, False),
    ],
)
def test_clip_and_dual_clip(ratio: float, advantage: float, loss: float, moves: bool) -> None:
    old = torch.zeros(1, 1, 1)
    log_probs = torch.tensor(ratio).log().reshape(1, 1, 1).requires_grad_()
    found = objective(log_probs, old, log_probs.detach(), torch.full((1, 1, 1), advantage), torch.ones(1), kl_weight=0.0)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(loss, rel=1e-5)
    assert bool(log_probs.grad.any()) is moves
    assert float(found.clipped) == (0.0 if moves else 1.0)


def test_at_ratio_one_the_gradient_is_reinforce_with_baseline_plus_the_kl_gradient() -> None:
    """A softmax policy over 6 ids; the same tokens, once through the objective and once as the textbook writes it."""
    logits = drawn(4, (2, 5, 7, 6)).requires_grad_()
    reference = torch.log_softmax(logits.detach() + 0.4 * drawn(5, (2, 5, 7, 6)), -1)
    tokens = torch.randint(0, 6, (2, 5, 7), generator=torch.Generator().manual_seed(6))
    mask = torch.tensor([1, 1, 1, 0, 1, 1, 0])
    rewards = drawn(7, (2, 5, 2))
    frame_of = torch.tensor([0, 0, 0, -1, 1, 1, -1])
    advantage = per_token(advantages(returns(rewards, True)), frame_of)
    taken = tokens[..., None]
    logp = torch.log_softmax(logits, -1).gather(-1, taken)[..., 0]
    ref = reference.gather(-1, taken)[..., 0]
    objective(logp, logp.detach(), ref, advantage, mask, kl_weight=0.3).loss.backward()
    found, logits.grad = logits.grad.clone(), None
    logp = torch.log_softmax(logits, -1).gather(-1, taken)[..., 0]
    slope = 1 - (ref - logp.detach()).exp()  # d k3 / d logp
    plain = (-advantage + 0.3 * slope) * logp
    ((plain * mask).sum() / (mask.sum() * 10)).backward()
    torch.testing.assert_close(found, logits.grad)


def test_forced_tokens_enter_nothing() -> None:
    mask, logp = torch.tensor([1, 0, 1]), drawn(8, (1, 2, 3))
    advantage, reference = drawn(9, (1, 2, 3)), drawn(10, (1, 2, 3))
    base = objective(logp, logp, reference, advantage, mask)
    wild = logp.clone()
    wild[..., 1] = 1e3
    other = objective(wild, logp, reference.masked_fill(mask == 0, -1e3), advantage, mask)
    assert (base.loss, base.kl, base.clipped) == (other.loss, other.kl, other.clipped)
    assert float(token_mean(torch.tensor([[1.0, 100.0, 3.0]]), mask)) == 2.0


def test_a_token_gets_its_frames_advantage() -> None:
    found = per_token(torch.tensor([[[1.0, 2.0]]]), torch.tensor([0, 0, -1, 1, 1, -1]))
    assert found.tolist() == [[[1.0, 1.0, 0.0, 2.0, 2.0, 0.0]]]
