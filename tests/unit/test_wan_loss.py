"""The loss of a Wan: history clean and out of it, times in fp32, and what it is least for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel

from tests.wan_nets import TWINS, B, batch_of, make_inputs, make_net
from worldsim.nn.flow import TimeSampling
from worldsim.world_models._wan_net import LEAST_SIGMA
from worldsim.world_models._wan_training import FlowLoss


@pytest.mark.parametrize("twin", TWINS)
def test_given_latents_are_clean_and_out_of_the_loss(twin, monkeypatch):
    """The net sees history clean (or, for I2V, noised beside a clean condition), and its error there does not count."""
    net = make_net(twin)
    loss = FlowLoss(net, (2,), TimeSampling("uniform"), dropout=0.0)
    batch, seen = batch_of(net, histories=1), {}

    def fake(x, time, text, actions, history, dropped, condition, image):
        seen.update(x=x, time=time, history=history, condition=condition)
        wrong = torch.zeros_like(x)
        wrong[:, :, :2] = 1e6
        return wrong

    monkeypatch.setattr(net, "forward", fake)
    torch.manual_seed(0)
    value = loss(**batch)
    assert value < 1e3
    assert seen["history"].tolist() == [2, 2, 2]
    clean_now = torch.equal(seen["x"][:, :, :2], batch["latents"][:, :, :2])
    assert clean_now == (twin != "tiny-i2v")
    if twin == "tiny-i2v":
        assert torch.equal(seen["condition"], batch["condition"][:, 0])


def test_the_loss_knows_the_answer(monkeypatch):
    """A net that returned the true velocity would have no loss; one that returns zero has about 2 (two unit normals)."""
    net = make_net("tiny-ti2v")
    batch = batch_of(net, count=64)
    loss = FlowLoss(net, (1,), TimeSampling("uniform"), dropout=0.0)

    def oracle(x, time, text, actions, history, dropped, condition, image):
        sigma = (time / 1000).view(-1, 1, 1, 1, 1)
        return (x - batch["latents"]) / sigma  # x = x0 + sigma (noise - x0)

    monkeypatch.setattr(net, "forward", oracle)
    assert loss(**batch).item() < 1e-4
    monkeypatch.setattr(net, "forward", lambda x, *rest: torch.zeros_like(x))
    assert loss(**batch).item() == pytest.approx(2.0, rel=0.05)


def test_time_is_fp32_per_latent_with_history_at_zero(monkeypatch):
    net = make_net("tiny-ti2v")
    seen = {}
    forward = WanTransformer3DModel.forward

    def spy(self, *args, **kwargs):
        seen.update(kwargs)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(WanTransformer3DModel, "forward", spy)
    with torch.no_grad():
        net(**make_inputs(net, history=2))
    assert seen["timestep"].dtype == torch.float32
    assert seen["timestep"].tolist() == [[0, 0, 250.0], [0, 0, 901.5]]


def test_predicted_samples_are_best_where_they_are_true_at_every_time(monkeypatch):
    """At sigma 0.02 the truth has no loss and no gradient, and an error counts as at ``LEAST_SIGMA``, not by 1 / sigma²."""
    net = make_net("tiny-ti2v")
    net.geometry = replace(net.geometry, prediction="sample")
    batch = batch_of(net, count=4)
    monkeypatch.setattr(TimeSampling, "sample", lambda self, count: torch.full((count,), 0.02))
    loss = FlowLoss(net, (1,), TimeSampling("uniform"), dropout=0.0)
    guess = torch.nn.Parameter(batch["latents"].clone())

    def transformer(*, hidden_states, **rest):
        return (guess,)

    monkeypatch.setattr(net.transformer, "forward", transformer)
    value = loss(**batch)
    value.backward()
    assert value.item() < 1e-9
    assert guess.grad.abs().max().item() < 1e-4
    off = 0.1
    guess.data += off
    assert loss(**batch).item() == pytest.approx((off / LEAST_SIGMA) ** 2, rel=1e-3)


@pytest.mark.parametrize("sigma", [0.02, 0.3])
@torch.no_grad()
def test_a_step_to_time_zero_from_a_true_sample_ends_there(monkeypatch, sigma):
    """A sampler's last step, also from below the time at which the loss stops growing."""
    net = make_net("tiny-ti2v")
    net.geometry = replace(net.geometry, prediction="sample")
    inputs = make_inputs(net) | {"time": torch.full((B,), 1000 * sigma)}
    truth = torch.randn_like(inputs["x"])
    monkeypatch.setattr(net.transformer, "forward", lambda **rest: (truth,))
    assert torch.allclose(inputs["x"] - sigma * net(**inputs), truth, atol=1e-4)


@pytest.mark.parametrize("twin", TWINS)
def test_the_shift_of_training_times_reaches_the_net(twin, monkeypatch):
    net, seen = make_net(twin), []
    batch = batch_of(net, count=32)
    monkeypatch.setattr(net, "forward", lambda x, time, *rest: seen.append(time / 1000) or torch.zeros_like(x))
    for shift in (1.0, 5.0):
        torch.manual_seed(0)
        FlowLoss(net, (1, 2), TimeSampling("uniform", shift), dropout=0.0)(**batch)
    plain, moved = seen
    assert torch.allclose(moved, 5 * plain / (1 + 4 * plain))
    assert 0.3 < plain.median() < 0.7
