"""The loop: resume is bit-exact wherever it was stopped, order and noise follow from the seed, metrics have no doubles."""

from __future__ import annotations

import json
import os
import signal
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from worldsim.core.config import build
from worldsim.core.errors import UserError
from worldsim.core.runs import RunContext
from worldsim.train import checkpoint
from worldsim.train.ema import Ema
from worldsim.train.loop import fit
from worldsim.train.order import Order, noise_seed
from worldsim.train.settings import Training, ema_decay, lr_factor
from worldsim.train.tracking import read_rows, wanted

DATA = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


class Noisy(nn.Module):
    """A small regression whose loss draws noise and drops out, as real ones do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.SiLU(), nn.Linear(8, 6))

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.net.named_parameters())

    def groups(self, settings: Training) -> list[dict]:
        return [{"params": list(self.net.parameters()), "lr": settings.lr}]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((self.net(x + 0.1 * torch.randn_like(x)) - x) ** 2).mean()


def settings(**changes) -> Training:
    return build(
        Training, {"steps": 8, "batch": 4, "lr": 0.01, "warmup": 2, "checkpoint_every": 3, "log_every": 1, **changes}
    )


def train(out, chosen: Training, stop_after: int | None = None, stop: str = "kill", seed: int = 0):
    """Run ``fit`` in ``out``; optionally stop it while batch ``stop_after`` is fetched, as a crash or a signal."""
    out.mkdir(exist_ok=True)
    context = RunContext("train", out, seed=seed)
    order = Order(len(DATA), seed, chosen.batch, chosen.accumulate)

    def fetch(step: int, micro: int) -> dict[str, torch.Tensor]:
        if stop_after is not None and step == stop_after:
            if stop == "kill":
                raise RuntimeError("killed")
            os.kill(os.getpid(), signal.SIGTERM)
        return {"x": DATA[order.indices(step, micro)]}

    def save(tensors, step):
        checkpoint.write_checkpoint(out / "checkpoint", tensors, {"world_model": "none"}, step)

    return fit(Noisy(), fetch, chosen, context, save)


def weights(out) -> bytes:
    return (out / "checkpoint" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "schedule": "cosine"}, {"ema": 0.0}])
@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_a_killed_run_ends_in_the_same_bytes(tmp_path, stop_after, changes):
    chosen = settings(**changes)
    train(tmp_path / "straight", chosen)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "killed", chosen, stop_after)
    outcome = train(tmp_path / "killed", chosen)
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")
    assert outcome.resumed_at in (0, 3, 6)
    steps = [row["step"] for row in read_rows(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == list(range(1, 9))
    losses = [[row["loss"] for row in read_rows(tmp_path / name / "metrics.jsonl")] for name in ("straight", "killed")]
    assert losses[0] == losses[1]


def test_sigterm_saves_the_step_and_stops(tmp_path):
    chosen = settings(checkpoint_every=100)
    train(tmp_path / "straight", chosen)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", chosen, 5, "term")
    assert signal.getsignal(signal.SIGTERM) is before
    about, _ = checkpoint.read_state(checkpoint.latest_state(tmp_path / "stopped" / "state"), ())
    assert 0 < about["step"] < 8
    assert train(tmp_path / "stopped", chosen).resumed_at == about["step"]
    assert weights(tmp_path / "stopped") == weights(tmp_path / "straight")


def test_killed_between_the_last_state_and_its_checkpoint(tmp_path):
    train(tmp_path / "run", settings())
    whole = weights(tmp_path / "run")
    (tmp_path / "run" / "checkpoint" / "model.safetensors").unlink()
    train(tmp_path / "run", settings())
    assert weights(tmp_path / "run") == whole


def test_only_the_newest_state_is_kept_and_half_written_ones_are_ignored(tmp_path):
    train(tmp_path / "run", settings())
    state = tmp_path / "run" / "state"
    assert [p.name for p in state.iterdir()] == ["step_000000008"]
    (state / "step_000000009").mkdir()
    assert checkpoint.latest_state(state).name == "step_000000008"


def test_it_learns_and_the_seed_decides(tmp_path):
    chosen = settings(steps=60, ema=0.9, checkpoint_every=60)
    train(tmp_path / "a", chosen)
    train(tmp_path / "b", chosen, seed=1)
    losses = [row["loss"] for row in read_rows(tmp_path / "a" / "metrics.jsonl")]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert weights(tmp_path / "a") != weights(tmp_path / "b")


def test_a_loss_that_is_not_finite_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(Noisy, "forward", lambda self, x: self.net(x).sum() * float("nan"))
    with pytest.raises(UserError, match="not finite at step 1"):
        train(tmp_path / "run", settings())


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path, monkeypatch):
    """Finite loss, NaN gradient at step 5: refused there; the state of step 3 stays and continues to the same bytes."""
    chosen, forward, calls = settings(), Noisy.forward, []
    train(tmp_path / "straight", chosen)

    def poisoned(self, x):
        loss = forward(self, x)
        calls.append(loss.item())
        if len(calls) == 5:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Noisy, "forward", poisoned)
        with pytest.raises(UserError, match="the gradient norm is not finite at step 5") as error:
            train(tmp_path / "run", chosen)
    assert "train.lr" in error.value.command
    assert np.isfinite(calls).all()
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert checkpoint.read_about(tmp_path / "run" / "checkpoint" / "model.safetensors") == {"step": 3}
    assert train(tmp_path / "run", chosen).resumed_at == 3
    assert weights(tmp_path / "run") == weights(tmp_path / "straight")


def test_order_sees_every_sample_once_per_epoch_at_any_world_size():
    alone = [Order(12, 5, batch=4).indices(step).tolist() for step in range(6)]
    assert sorted(chain(*alone[:3])) == sorted(chain(*alone[3:])) == list(range(12))
    assert alone[:3] != alone[3:]
    ranks = [Order(12, 5, batch=2, rank=r, world_size=2) for r in range(2)]
    together = [ranks[0].indices(step).tolist() + ranks[1].indices(step).tolist() for step in range(6)]
    assert together == alone
    halves = Order(12, 5, batch=2, accumulate=2)
    assert [halves.indices(s, 0).tolist() + halves.indices(s, 1).tolist() for s in range(6)] == alone


def test_seeds_differ_in_every_part():
    seeds = {noise_seed(*parts) for parts in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0, 0))}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_learning_rate_and_decay_are_functions_of_the_step():
    cosine = settings(steps=102, warmup=1, schedule="cosine")
    assert lr_factor(0, cosine) == 0.5
    assert lr_factor(1, cosine) == 1.0
    assert lr_factor(101, cosine) == pytest.approx(0.1, abs=0.01)
    assert lr_factor(50, settings(warmup=0)) == 1.0
    assert ema_decay(0, settings()) == 0.1
    assert ema_decay(10**6, settings()) == 0.999


def test_ema_is_the_weighted_average():
    p = {"w": torch.tensor([1.0], dtype=torch.bfloat16)}
    ema = Ema(p)
    p["w"].fill_(3.0)
    ema.update(p, 0.75)
    assert ema.shadow["w"].item() == 1.5
    assert ema.shadow["w"].dtype == torch.float32


def test_weights_file_is_a_function_of_its_tensors(tmp_path):
    tensors = {f"n{i}": torch.full((3,), float(i)) for i in range(9)}
    checkpoint.write_weights(tmp_path / "a", tensors, {"step": 3, "more": [1]})
    checkpoint.write_weights(tmp_path / "b", dict(reversed(tensors.items())), {"more": [1], "step": 3})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert checkpoint.read_about(tmp_path / "a") == {"step": 3, "more": [1]}
    (tmp_path / "a").write_bytes(b"garbage!" * 3)
    with pytest.raises(UserError, match="is damaged, cut off or no safetensors file"):
        checkpoint.read_weights(tmp_path / "a")


def test_a_torn_last_row_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_rows(path) == [{"step": 1}]


def test_wandb_is_used_when_configured(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not wanted(None)
    assert wanted(True)
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert wanted(None)
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wanted(None)
    assert not wanted(False)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert not wanted(None)


def test_unreachable_wandb_is_a_note(tmp_path, monkeypatch):
    import wandb

    def refuse(**options):
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(wandb, "init", refuse)
    context = RunContext("train", tmp_path)
    chosen = settings(wandb=True, steps=2)
    order = Order(len(DATA), 0, chosen.batch)
    fit(Noisy(), lambda s, m: {"x": DATA[order.indices(s, m)]}, chosen, context, lambda tensors, step: None)
    assert "no route to host" in context.notes[0]
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.parametrize(("key", "value"), [("steps", 0), ("ema", 1.0), ("lr", -1.0)])
def test_senseless_settings_are_refused(key, value):
    with pytest.raises(UserError, match=f"train.{key}"):
        settings(**{key: value})


def test_ranks_draw_other_noise_and_one_rank_the_same_again(tmp_path):
    """What the loss sees of torch's generator, per step and pass."""

    class Listening(Noisy):
        def forward(self, x):
            drawn.append(torch.rand(1).item())
            return super().forward(x)

    heard = {}
    for name, rank in (("a", 0), ("b", 1), ("again", 0)):
        drawn: list[float] = []
        (tmp_path / name).mkdir()
        context = RunContext("train", tmp_path / name, rank=rank)
        chosen = settings(steps=2, accumulate=2, checkpoint_every=2)
        fit(Listening(), lambda step, micro: {"x": DATA[:4]}, chosen, context, lambda tensors, step: None)
        heard[name] = drawn
    assert heard["a"] == heard["again"]
    assert len({*heard["a"], *heard["b"]}) == 8
