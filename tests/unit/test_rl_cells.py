"""Credit cell by cell, and reinforcement at another temperature than 1."""

from __future__ import annotations

import pytest
import torch

from tests import rl_twins
from worldsim import rewards
from worldsim.rewards._cells import cells
from worldsim.rl.groups import Groups, frame_of
from worldsim.rl.objectives import advantages, cell_scale, group_std, per_token
from worldsim.rl.step import Feed, GroupLoss, Shares, Weights


def pictures(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions ``[2, 3, 4, 3, 8, 8]`` and a truth ``[2, 4, 3, 8, 8]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, 4, 3, 8, 8, generator=generator), torch.rand(2, 4, 3, 8, 8, generator=generator)


@pytest.mark.parametrize("name", ["mse", "mae"])
def test_a_cell_sees_itself_and_its_neighbours_only(name: str) -> None:
    prediction, truth = pictures()
    base = cells(name, prediction, truth, (4, 4)).unflatten(-1, (4, 4))
    assert (base < 0).all()
    assert not cells(name, truth[:, None], truth, (4, 4)).any()
    changed = prediction.clone()
    changed[..., 0:2, 6:8] = 1 - changed[..., 0:2, 6:8]  # row 0, column 3 of the grid
    moved = (cells(name, changed, truth, (4, 4)).unflatten(-1, (4, 4)) != base).all(0).all(0).all(0)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:2, 2:] = True
    assert torch.equal(moved, expected)


def test_cells_of_even_errors_are_the_reward_and_other_rewards_count_for_all() -> None:
    _, truth = pictures()
    prediction = (truth[:, None] + 0.1 * torch.arange(1, 4)[None, :, None, None, None, None]).expand(2, 3, 4, 3, 8, 8)
    judge = rewards.load("0.5*mse+repetition")
    tokens = torch.zeros(2, 3, 4, 4, dtype=torch.int64)
    parts = judge.parts(prediction, truth, tokens, truth[:, 0])
    found = judge.cells(parts, prediction, truth, (2, 2))
    assert found.shape == (2, 3, 4, 4)
    torch.testing.assert_close(found, judge.total(parts)[..., None].expand_as(found))
    assert parts["repetition"].any()


def test_one_deviation_for_the_cells_of_a_frame() -> None:
    """Quiet cells stay quiet: their noise is measured by the frame's deviation, not blown up by their own."""
    values = torch.randn(2, 6, 2 * 3, generator=torch.Generator().manual_seed(1))
    values[..., 0] *= 1e-3
    scale = cell_scale(values, 2)
    own = group_std(values)[:, 0].view(2, 2, 3)
    expected = own.square().mean(-1, keepdim=True).sqrt().expand(2, 2, 3).reshape(2, 1, 6)
    torch.testing.assert_close(scale, expected)
    assert advantages(values, scale)[..., 0].abs().max() < 0.01 < 1 < advantages(values)[..., 0].abs().max()
    assert not advantages(torch.ones_like(values), cell_scale(torch.ones_like(values), 2)).any()


def test_a_token_gets_its_own_advantage_in_order() -> None:
    frames = torch.tensor([0, 0, -1, 1, 1, -1])
    assert per_token(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), frames).tolist() == [[[1, 2, 0, 3, 4, 0]]]


@pytest.mark.parametrize("per_frame", [False, True])
def test_groups_are_credited_cell_by_cell(per_frame: bool) -> None:
    """Against the formula, token by token, from decoded pictures; and an update takes it."""
    codec = rl_twins.Cells()
    codec.grid = (2, 2)  # type: ignore[attr-defined]
    model = rl_twins.policy(codec)
    prompts = rl_twins.scenes(model, codec, range(3))
    groups: Groups = rl_twins.collector(model, codec, per_cell=True, per_frame=per_frame).collect(prompts, 1)
    assert groups.values.shape == (3, 4, 3 * 4)
    tokens = model.layout.frames_of(groups.responses)
    truth = prompts.truth.movedim(-1, -3).float() / 255
    for p in range(3):
        shown = torch.stack(
            [codec.pixels(codec.open(prompts.context[p : p + 1]), tokens[p : p + 1, n])[0] for n in range(4)]
        )
        own = cells("mse", shown[None], truth[p : p + 1], (2, 2))[0]
        later = [own[:, f:].mean(1) if per_frame else own.mean(1) for f in range(3)]
        torch.testing.assert_close(groups.values[p], torch.stack(later, 1).flatten(1))
    loss = GroupLoss(model, Weights(kl=0.0))
    feed = Feed(groups, Shares(3, 3, micro=3), cell_scale(groups.values, 3), 0)
    loss(**feed.take(0, 0)).backward()
    assert any(parameter.grad.any() for parameter in model.net.parameters())
    assert feed.advantage.shape[-1] == int((frame_of(model.layout.response) >= 0).sum())
