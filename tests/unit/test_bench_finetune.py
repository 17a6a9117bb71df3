"""The fine-tuning benchmark compares like with like: the same network in both arms, operations counted right."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from worldsim.nn import flow
from worldsim.world_models._wan_net import NetSpec, WanNet

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of ``scripts/bench``."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if name.startswith("_finetune") or name == "finetune":
            del sys.modules[name]


@pytest.fixture
def work(bench: Any, tmp_path: Path) -> Any:
    arms, models = bench("_finetune_arms"), bench("_finetune_models")
    data = models.make_data(tmp_path / "data", 2, 9, (32, 32))
    return arms.Work(models.random_base("tiny-ti2v", "cpu"), data, "cpu", (32, 32), 9, 2, 1, 2, False)


def test_both_arms_run_the_same_network(bench: Any, work: Any) -> None:
    """Actions that are not wired yet: the plain script's velocity is that of ours, TI2V's first latent at time 0."""
    plain = bench("_finetune_arms").Plain(work)
    torch.nn.init.zeros_(plain.actions[-1].weight)
    torch.nn.init.zeros_(plain.actions[-1].bias)
    net = WanNet(work.base.transformer(), work.base.geometry, NetSpec(7, 1, "patch-add", 24, 4, 4.0))
    frames, actions = plain.read()
    x = torch.from_numpy(plain.vae.encode(frames))
    text, sigma = plain.embed(), torch.tensor([0.37])
    with torch.no_grad():
        found = plain.predict(x, sigma, text, actions)
        expected = net(x, flow.timestep(sigma), text, actions[:, :, None], torch.tensor([1]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert float(found.abs().mean()) > 1e-3


def test_a_plain_step_learns_and_ours_measures(bench: Any, work: Any, tmp_path: Path) -> None:
    arms = bench("_finetune_arms")
    plain = arms.Plain(work)
    before = [p.detach().clone() for p in plain.trained]
    turn = plain.turn(steps=1)
    assert any(not torch.equal(a, b) for a, b in zip(before, plain.trained, strict=True))
    assert turn.seconds == pytest.approx(sum(turn.parts.values()))
    mine = arms.ours(work, tmp_path / "run", 2)
    assert 0 < mine.seconds < 60
    assert 0 <= mine.waited < 1


@pytest.mark.parametrize("model", ["tiny-t2v", "tiny-ti2v"])
def test_operations_are_counted_as_torch_counts_them(bench: Any, model: str) -> None:
    """The formula leaves out the embedding of the times alone, which is one token's worth here."""
    models = bench("_finetune_models")
    base = models.random_base(model, "cpu")
    x = torch.zeros(1, base.geometry.channels, 4, 16, 16)
    text = torch.zeros(1, base.geometry.text_tokens, base.geometry.transformer["text_dim"])
    with FlopCounterMode(display=False) as counted, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        base.transformer()(x, torch.tensor([500.0]), text, return_dict=False)
    assert sum(models.forward_flops(base.geometry, 4 * 8 * 8)) == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_real_geometries_are_what_they_are_called(bench: Any) -> None:
    """The benchmark's random 5B and 1.3B have those parameters; nothing is allocated."""
    models = bench("_finetune_models")
    for model, wanted in (("wan2.1-t2v-1.3b", 1.42e9), ("wan2.2-ti2v-5b", 5.0e9)):
        base = models.random_base(model, "meta")
        assert base.geometry.random
        with torch.device("meta"):
            from diffusers import AutoencoderKLWan, WanTransformer3DModel

            count = sum(p.numel() for p in WanTransformer3DModel(**base.geometry.transformer).parameters())
            vae = AutoencoderKLWan(**base.geometry.vae)
        assert count == pytest.approx(wanted, rel=0.01)
        assert (vae.config.z_dim, vae.config.scale_factor_spatial) == (base.geometry.channels, base.geometry.stride)
        linear, attention = models.forward_flops(base.geometry, 1000)
        assert np.isfinite(linear + attention)
        assert linear > 2 * 1000 * 0.8 * count  # two operations per weight and token, but for the text's


def test_what_cannot_be_measured_is_a_sentence(bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    finetune = bench("finetune")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, said in ((["--device", "cuda"], "finds no such device"), (["--model", "tiny-i2v"], "t2v and ti2v")):
        monkeypatch.setattr(sys, "argv", ["finetune.py", *words])
        assert finetune.main() == 1
        assert said in capsys.readouterr().err
