"""Credit cell by cell: an error counts where it lies, cells add up to the picture, and quiet cells stay quiet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import rl_ranks, rl_twins
from worldsim import rewards
from worldsim.rewards._cells import cells
from worldsim.rl import loop
from worldsim.rl.groups import Groups, unit
from worldsim.rl.objectives import advantages, cell_scale, per_token
from worldsim.rl.step import Feed, Shares, shared_scale


def test_an_error_is_charged_to_its_cell_alone() -> None:
    truth = torch.full((1, 1, 3, 16, 24), 0.5)
    prediction = truth[:, None].clone()
    prediction[0, 0, 0, :, 4:8, 20:24] = 0.9  # rows 1, columns 5 of a grid of 4 x 6
    found = cells("mse", prediction, truth, truth[:, 0], (4, 6)).view(4, 6)
    charged = torch.zeros(4, 6, dtype=torch.bool)
    charged[1, 5] = True
    assert torch.equal(found != 0, charged)
    torch.testing.assert_close(found[1, 5], torch.tensor(-(0.4**2)))


def test_cells_add_up_to_the_whole_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 3, 3, 16, 16, generator=generator)
    prediction = torch.rand(2, 4, 3, 3, 16, 16, generator=generator)
    tokens = torch.arange(2 * 4 * 3 * 16).view(2, 4, 3, 16)
    last = truth[:, 0].clone()
    last[:, :, 6:10, 6:9] = 1 - last[:, :, 6:10, 6:9].round()
    judge = rewards.load("mse+2*mae+motion-mse", "cpu")
    parts = judge.parts(prediction, truth, tokens, last)
    assert (parts["motion-mse"] < 0).all()
    own = judge.cells(parts, prediction, truth, last, (4, 4))
    torch.testing.assert_close(own.mean(-1), judge.total(parts))


def test_what_is_no_sum_over_pixels_counts_for_every_cell_alike() -> None:
    truth = torch.rand(1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prediction, tokens = truth[:, None].clone(), torch.zeros(1, 1, 2, 4, dtype=torch.int64)
    judge = rewards.load("mse+repetition", "cpu")
    parts = judge.parts(prediction, truth, tokens, 1 - truth[:, 0])
    assert judge.cells(parts, prediction, truth, 1 - truth[:, 0], (2, 2)).tolist() == [[[[0.0] * 4, [-1.0] * 4]]]


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


@pytest.mark.parametrize(("per_frame", "discount"), [(False, 1.0), (True, 1.0), (True, 0.5)])
@pytest.mark.parametrize("per_cell", [False, True])
def test_each_token_is_credited_with_its_place_and_its_time(per_cell: bool, per_frame: bool, discount: float) -> None:
    """Against plain loops: own cell or whole picture, all frames or those from its own on; frame by frame, cell by cell."""
    codec = rl_twins.Cells()
    model = rl_twins.policy(codec)
    prompts = rl_twins.scenes(model, codec, range(2))
    found = rl_twins.collector(model, codec, size=3, per_cell=per_cell, per_frame=per_frame, discount=discount).collect(
        prompts, 1
    )
    tokens, credit = model.layout.frames_of(found.responses), []
    for p in range(2):
        for n in range(3):
            pictures = codec.pixels(codec.open(prompts.context[p : p + 1]), tokens[p : p + 1, n])[0]
            error = (pictures - unit(prompts.truth[p])).square().mean(1)
            for f in range(3):
                counted = error[f:] if per_frame else error
                for r, c in [(0, 0), (0, 1), (1, 0), (1, 1)] if per_cell else [(None, None)]:
                    own = [e if r is None else e[4 * r : 4 * r + 4, 4 * c : 4 * c + 4] for e in counted]
                    heavy = [discount**k for k in range(len(own))]
                    credit.append(-sum(w * float(e.mean()) for w, e in zip(heavy, own)) / sum(heavy))
    assert found.values.shape == (2, 3, 12 if per_cell else 3)
    torch.testing.assert_close(found.values, torch.tensor(credit).view_as(found.values), atol=1e-6, rtol=1e-5)
    assert found.values.flatten(0, 1).std(0).min() > 0


@pytest.mark.parametrize("way", ["own", "uniform", "cells"])
def test_a_run_scales_advantages_the_way_it_was_told_to(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[tuple[Tensor, Tensor | None]] = []
    build = rl_twins.collector

    def spied(groups: Groups, shares: Shares, scale: Tensor | None, first: int) -> Feed:
        fed.append((groups.values, scale))
        return Feed(groups, shares, scale, first)

    monkeypatch.setattr(loop, "Feed", spied)
    monkeypatch.setattr(rl_twins, "collector", lambda *args, **more: build(*args, **more, per_cell=way == "cells"))
    rl_ranks.run(tmp_path, iterations=1, micro=4, uniform_std=way == "uniform")
    ((values, scale),) = fed
    if way == "own":
        assert scale is None
        return
    assert scale is not None
    torch.testing.assert_close(scale, cell_scale(values, rl_twins.PREDICTED) if way == "cells" else shared_scale(values))
