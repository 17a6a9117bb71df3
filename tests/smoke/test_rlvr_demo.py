"""``make rlvr-demo`` told in seconds: the whole way on a few episodes, with the bundled bases."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch):
    """``scripts/rlvr_demo.py`` as a module; its neighbours are found as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("rlvr_demo", ROOT / "scripts" / "rlvr_demo.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rlvr_demo", module)
    spec.loader.exec_module(module)
    return module


ROWS = ("base", "base_best_temperature", "rlvr", "copy", "floor")
QUICK = ("iterations=1", "prompts=1", "minibatch=1", "group_size=2", "validate.every=0")
EVAL = ("control_temperatures=[0.5]", "control_episodes=1", "clips=1")


def test_the_whole_way(demo, tmp_path: Path, capfd) -> None:
    out = tmp_path / "demo"
    argv = ["--out", out, "--episodes", 6, "--slow", 2, "--steps", 8, "--seeds", 1, "--samples", 1]
    argv += [word for pair in QUICK for word in ("--rlvr", pair)] + [word for pair in EVAL for word in ("--eval", pair)]
    argv = [str(word) for word in argv]
    assert demo.main(argv) == 0
    printed = capfd.readouterr().out
    typed = [line.split()[2] for line in printed.splitlines() if line.startswith("$ ")]
    data = ["scripts/simulate.py", "convert"] * 2
    assert typed == [*data, "tokenize-world", "rlvr", "eval", "eval", "rlvr", "eval"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["episodes"] == 2
    for kind in (summary["seeds"], summary["single_step"]["seeds"]):
        (one,) = kind
        for row in ROWS:
            assert all(np.isfinite(one[row][score]) for score in ("mse", "motion_mse", "mae", "ssim"))
            low, high = one["intervals"][row]["mse"]
            assert low <= one[row]["mse"] <= high
        assert one["seconds"] > 0
    assert {"base", "rlvr"} <= set(summary["seeds"][0]["intervals"])
    assert -1 <= summary["seeds"][0]["rlvr"]["repetition"] <= 1
    assert summary["seeds"][0]["copy"]["mse"] > summary["seeds"][0]["floor"]["mse"]
    recompute(out, summary["seeds"][0])
    assert "Too few episodes or seeds" in printed
    assert demo.main(argv) == 0
    again = capfd.readouterr().out
    assert "already done" in again
    assert json.loads((out / "summary.json").read_text()) == summary


def recompute(out: Path, one: dict) -> None:
    """The summary's MSE of the model and of copying, from the frames that eval left."""
    model, copy = [], []
    for path in sorted((out / "eval-multi-0" / "frames").glob("*.npz")):
        frames = np.load(path)
        truth, pred = (frames[name].astype(np.float64) / 255 for name in ("truth", "pred"))
        model.append(np.square(pred[1:] - truth[1:]).mean())
        copy.append(np.square(truth[:1] - truth[1:]).mean())
    assert np.mean(model) == pytest.approx(one["rlvr"]["mse"], rel=1e-6)
    assert np.mean(copy) == pytest.approx(one["copy"]["mse"], rel=1e-6)


def test_a_change_is_paired_over_episodes(demo) -> None:
    scores = {"per_episode": {"baseline": {"mse": [[1.0, 3.0], [4.0, 4.0]]}, "model": {"mse": [[1.0, 1.0], [2.0, None]]}}}
    found = demo.change(scores, "baseline", "mse")
    assert found["change"] == pytest.approx(-0.5)
    assert found["low"] == found["high"] == pytest.approx(-0.5)
