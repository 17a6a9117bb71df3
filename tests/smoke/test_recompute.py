"""scripts/recompute.py: the scores from the pictures alone, by formulas written a second time; a changed pixel is noticed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tests import dreams
from tests.dreams import run_eval

ROOT = Path(__file__).resolve().parents[2]
METRICS = ["psnr", "ssim", "mse", "mae", "motion_mse", "motion_psnr", "truth_motion_psnr", "flow_error"]


@pytest.fixture(scope="module")
def recompute():
    spec = importlib.util.spec_from_file_location("recompute", ROOT / "scripts" / "recompute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_needs_nothing_of_this_package() -> None:
    text = (ROOT / "scripts" / "recompute.py").read_text()
    assert "worldsim" not in text


def test_every_score_is_found_again(tmp_path: Path, models, recompute, capsys) -> None:
    """All rows and metrics, several samples and permutations, frames above the flow's size, steps without motion."""
    data = dreams.write_painted(tmp_path / "data", 3, 5, (144, 144))
    values = {"frames": 2, "num_samples": 2, "permutations": 2, "baseline": "echo", "metrics": METRICS, "episodes": "all"}
    models["echo"].height, models["echo"].width = 144, 144
    run_eval(tmp_path / "run", data, "noisy", **values)
    found = recompute.compare(tmp_path / "run")
    rows = ("model", "best_of_n", "baseline", "copy_last", "ceiling", "shifted", "permuted")
    assert set(found) == {f"{row}/{name}" for row in rows for name in METRICS} | {"permutation gap", "sign test"}
    assert max(found[f"{row}/flow_error"] for row in rows) < 1e-5, "optical flow is single precision"
    assert max(value for key, value in found.items() if "flow" not in key) < 1e-9, found
    assert recompute.main([str(tmp_path / "run")]) == 0
    assert "0 differ" in capsys.readouterr().out

    path = sorted((tmp_path / "run" / "frames").glob("*.npz"))[1]
    with np.load(path) as file:
        arrays = dict(file)
    arrays["samples"][1, 2, 50:60, 70] ^= 0x40
    np.savez(path, **arrays)
    assert recompute.main([str(tmp_path / "run")]) == 1
    assert "model/psnr" in [line.split()[0] for line in capsys.readouterr().out.splitlines() if "DIFFERS" in line]


def test_an_altered_table_is_noticed(tmp_path: Path, models, recompute) -> None:
    data = dreams.write_painted(tmp_path / "data", 3, 4)
    run_eval(tmp_path / "run", data, "noisy", frames=2, episodes="all", metrics=["psnr", "motion_psnr"])
    path = tmp_path / "run" / "scores.json"
    told = json.loads(path.read_text())
    told["permutation"]["gap"] += 0.5
    path.write_text(json.dumps(told))
    assert recompute.compare(tmp_path / "run")["permutation gap"] == pytest.approx(0.5)
    assert recompute.main([str(tmp_path / "run")]) == 1
