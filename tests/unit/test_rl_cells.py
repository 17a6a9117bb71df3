"""Credit cell by cell: an error counts where it lies, cells add up to the picture, and quiet cells stay quiet."""

from __future__ import annotations

import torch

from worldsim import rewards
from worldsim.rewards._cells import cells
from worldsim.rl.objectives import advantages, cell_scale, per_token


def test_an_error_is_charged_to_its_cell_and_those_beside_it() -> None:
    truth = torch.full((1, 1, 3, 16, 24), 0.5)
    prediction = truth[:, None].clone()
    prediction[0, 0, 0, :, 4:8, 20:24] = 0.9  # rows 1, columns 5 of a grid of 4 x 6
    found = cells("mse", prediction, truth, (4, 6)).view(4, 6)
    charged = torch.zeros(4, 6, dtype=torch.bool)
    charged[0:3, 4:6] = True
    assert torch.equal(found != 0, charged)
    torch.testing.assert_close(found[1, 4], torch.tensor(-(0.4**2) / 9))


def test_away_from_the_border_cells_add_up_to_the_whole_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 3, 3, 16, 16, generator=generator)
    prediction = truth[:, None].expand(-1, 4, *[-1] * 4).clone()
    prediction[..., 4:12, 4:12] = torch.rand(2, 4, 3, 3, 8, 8, generator=generator)
    tokens = torch.arange(2 * 4 * 3 * 16).view(2, 4, 3, 16)
    judge = rewards.load("mse+2*mae", "cpu")
    parts = judge.parts(prediction, truth, tokens, truth[:, 0])
    own = judge.cells(parts, prediction, truth, (4, 4))
    torch.testing.assert_close(own.mean(-1), judge.total(parts))


def test_what_is_no_sum_over_pixels_counts_for_every_cell_alike() -> None:
    truth = torch.rand(1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prediction, tokens = truth[:, None].clone(), torch.zeros(1, 1, 2, 4, dtype=torch.int64)
    judge = rewards.load("mse+repetition", "cpu")
    parts = judge.parts(prediction, truth, tokens, 1 - truth[:, 0])
    assert judge.cells(parts, prediction, truth, (2, 2)).tolist() == [[[[0.0] * 4, [-1.0] * 4]]]


def test_cells_of_a_frame_share_one_scale_and_equal_groups_teach_nothing() -> None:
    values = torch.tensor([[[0.0, 0.0, 1.0, 7.0], [2.0, 0.02, 3.0, 7.0]]])  # two frames of two cells, two samples
    found = advantages(values, cell_scale(values, 2))
    scale = torch.tensor([2**0.5, 0.02 / 2**0.5]).square().mean().sqrt()
    torch.testing.assert_close(found[0, 1, 0], 1 / scale)
    torch.testing.assert_close(found[0, 1, 1], 0.01 / scale)
    assert not found[..., 3].any()
    assert not advantages(torch.ones(1, 4, 6), cell_scale(torch.ones(1, 4, 6), 3)).any()


def test_each_drawn_token_gets_its_own_advantage_and_forced_ones_none() -> None:
    frame_of = torch.tensor([0, 0, -1, 1, 1, -1])
    found = per_token(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), frame_of)
    assert found.tolist() == [[[1.0, 2.0, 0.0, 3.0, 4.0, 0.0]]]
