"""The benchmark of rlvr compares like with like: both arms draw the same tokens and end in the same weights."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from worldsim.world_models._token_layout import Layout
from worldsim.world_models._token_net import NetSpec

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of ``scripts/bench``."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name.startswith("_rlvr") or name in ("rlvr", "_peak"):
            del sys.modules[name]


def test_quick_run_has_every_ratio_and_both_arms_agree(bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    rlvr = bench("rlvr")
    monkeypatch.setattr(sys, "argv", ["rlvr.py", "--quick", "--reward", "mae"])
    assert rlvr.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for key in ("sampler_ratio", "generate_ratio", "ratio"):
        assert found[key] > 0, key
    for key in ("floor_ratio", "sampler_floor_ratio", "sampler_memory_floor_ratio"):
        assert 0 <= found[key] < 1, key
    assert found["sampler_same_tokens"] == {"reprefill": 1.0, "kept": 1.0}
    assert found["same_tokens"] == 1.0
    assert found["update_gap"] < 0.05
    assert found["update_difference"] < 0.01
    assert set(found["seconds"]["ours"]) == set(found["seconds"]["plain"]) == set(rlvr.STAGES)
    assert "static cache" in found["sampler"]


@pytest.mark.parametrize("keep", [True, False])
def test_the_baseline_draws_the_same_with_either_cache(bench: Any, keep: bool) -> None:
    work_of, plain, ours = bench("_rlvr_work"), bench("_rlvr_plain"), bench("_rlvr_ours")
    layout = Layout(15, 6, 24, 1, 3, 3, 16, kind="released-multi")
    work = work_of.Work.make(layout, NetSpec(layout.vocab, 2, 32, 64, 2), 3, 3, 2, torch.float32)
    expected = ours.draw_all(work.net(), work).flatten(0, 1)
    for cache in ("static", "dynamic"):
        arm = plain.PlainSampler(work.net().to_llama(), work, keep, cache)
        assert list(arm.frames()) == [0, 1, 2]
        assert torch.equal(arm.tokens, expected)


def test_operations_are_counted_as_torch_counts_them(bench: Any) -> None:
    """The floor of sampling against a counted shared-prefix forward of the same tokens; torch counts whole squares of causal
    attention, which the floor counts half."""
    work_of = bench("_rlvr_work")
    layout = Layout(15, 6, 24, 1, 3, 3, 16, kind="released-multi")
    spec = NetSpec(layout.vocab, 2, 32, 64, 2)
    work = work_of.Work.make(layout, spec, 4, 3, 1, torch.float32)
    net, fed, prompt = work.net(), work_of.fed_tokens(work), layout.prompt_length
    ids = torch.cat([work.prompt, work.forced], 1)[:, : prompt + fed]
    with FlopCounterMode(display=False) as counted, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        net.hidden(ids)
    linear = (prompt + fed) * spec.layers * (4 * spec.width**2 + 3 * spec.width * spec.ffn)
    square = (prompt + fed) ** 2 * 2 * spec.width * spec.layers
    assert counted.get_total_flops() == 2 * (linear + square)
    head = 3 * layout.frame_tokens * spec.width * layout.codes
    one = work_of.floor_macs(work_of.Work.make(layout, spec, 1, 3, 1, torch.float32))
    assert one["sample"] == linear + square / 2 + head
    assert one["update"] == 3 * one["reference"]
    assert work_of.floor_macs(work)["sample"] < 4 * one["sample"]
