"""Two sides in one optimiser: a group that starts later, one that is clipped by itself, and what the module says of itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from worldsim.core.config import build
from worldsim.core.runs import RunContext
from worldsim.train import checkpoint
from worldsim.train.loop import fit
from worldsim.train.settings import Training
from worldsim.train.tracking import read_rows


class Sides(nn.Module):
    """Two weights with losses of their own; the second one's is 1000 times as steep. A buffer counts passes."""

    def __init__(self, start: int, alone: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        self.register_buffer("passes", torch.zeros(()))
        self.start, self.alone = start, alone

    def trained(self) -> dict[str, torch.Tensor]:
        return {"first": self.first, "second": self.second, "passes": self.passes}

    def groups(self, settings: Training) -> list[dict]:
        own = {"start": self.start, "alone": self.alone}
        return [{"params": [self.first], "lr": settings.lr}, {"params": [self.second], "lr": settings.lr, **own}]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        self.numbers = {"steep": (1000 * self.second.square().sum()).detach()}
        return self.first.square().sum() * x + 1000 * self.second.square().sum()


def train(out, module: Sides, steps: int, **changes) -> dict[str, torch.Tensor]:
    out.mkdir(exist_ok=True)
    plain = {"batch": 1, "lr": 0.1, "warmup": 0, "weight_decay": 0.0, "ema": 0.0, "checkpoint_every": 2, "log_every": 1}
    settings = build(Training, {**plain, **changes, "steps": steps})
    kept: dict[str, torch.Tensor] = {}

    def save(tensors, step):
        kept.update({name: tensor.clone() for name, tensor in tensors.items()})

    fit(module, lambda step, micro: {"x": torch.tensor(1.0)}, settings, RunContext("train", out), save)
    return kept


def test_a_group_rests_until_its_start_and_its_moments_begin_there(tmp_path):
    run = tmp_path / "run"
    kept = train(run, Sides(start=3), 3)
    assert torch.equal(kept["second"], torch.ones(3))
    assert (kept["first"] < 1).all()
    state = torch.load(checkpoint.latest_state(run / "state") / "optimizer.pt", weights_only=True)
    assert list(state["state"]) == [0]  # no moments of a group that rests
    later = train(tmp_path / "later", Sides(start=3), 4)
    assert torch.allclose(later["second"], torch.ones(3) - 0.1, atol=1e-4)  # a whole first step, as Adam takes it
    assert kept["passes"] == 3


def test_a_resume_across_the_start_changes_nothing(tmp_path):
    straight = train(tmp_path / "straight", Sides(start=3), 6)
    train(tmp_path / "stopped", Sides(start=3), 2)
    resumed = train(tmp_path / "stopped", Sides(start=3), 6)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert resumed["passes"] == 6


@pytest.mark.parametrize("alone", [True, False])
def test_a_steep_side_does_not_silence_the_other_when_it_is_clipped_alone(tmp_path, alone):
    """SGD-like: Adam hides the size of gradients, so their first moments are looked at."""
    train(tmp_path / "run", Sides(start=0, alone=alone), 2, betas=[0.9, 0.999])
    state = torch.load(checkpoint.latest_state(tmp_path / "run" / "state") / "optimizer.pt", weights_only=True)
    first, second = (state["state"][k]["exp_avg"].norm() for k in (0, 1))
    assert second == pytest.approx(0.19, abs=0.02)  # a unit gradient, twice
    assert (first > 0.15) if alone else (first < 0.01)


def test_what_the_module_says_of_itself_is_logged(tmp_path):
    train(tmp_path / "run", Sides(start=0), 2)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["steep"] == pytest.approx(3000.0)
    assert rows[1]["steep"] < rows[0]["steep"]
    assert rows[0]["grad_norm"] == pytest.approx(2000 * 3**0.5)  # the larger one, before it was bounded
