"""eval video of token models: repetition beside the truth's, best of N beside one shot, and the baseline's best temperature."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tests import dreams
from tests.dreams import run_eval, run_infer
from worldsim.commands._world import tiny_world
from worldsim.core.errors import UserError
from worldsim.data.predictions import load
from worldsim.metrics.repetition import beyond, repeats

SCRIPT = Path(__file__).parents[2] / "scripts" / "recompute.py"
CONTROL = {
    "baseline": "base",
    "control": True,
    "control_temperatures": (0.0, 0.5),
    "control_top_k": (0, 1, 5),
    "validation": "0,1",
    "episodes": "2,3,4",
}
FAST = {"frames": 4, "metrics": ("mse", "ssim", "motion_psnr"), "permutations": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dreams.write_painted(tmp_path_factory.mktemp("painted") / "data", 5, 9, (16, 24), cameras=("camera",), dim=2)


@pytest.fixture
def tokens(models) -> dict:
    models["model"], models["base"] = tiny_world("token-ar"), tiny_world("token-ar")
    models["single"] = tiny_world("token-ar", "fsq-frame")
    return models


def told(run: Path) -> dict:
    return json.loads((run / "scores.json").read_text())


def test_rows_of_a_token_model_and_all_of_them_can_be_recomputed(tmp_path: Path, data: Path, tokens) -> None:
    result, _ = run_eval(tmp_path, data, "model", num_samples=3, **FAST, **CONTROL)
    scores = told(tmp_path)
    rows = ["model", "best_of_n", "baseline", "control", "copy_last", "ceiling", "shifted"]
    assert list(scores["summary"]) == rows
    assert {"mae", "motion_mse", "perceptual"} <= set(scores["summary"]["model"])
    for name, sign in (("mse", 1), ("ssim", -1)):
        own, best = (np.array(scores["per_episode"][row][name]).mean(1) for row in ("model", "best_of_n"))
        assert (sign * (own - best) >= 0).all()
    assert result.metrics["control"]["mse"] == scores["summary"]["control"]["mse"]["mean"]
    spec = importlib.util.spec_from_file_location("recompute", SCRIPT)
    recompute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recompute)
    found = recompute.compare(tmp_path)
    assert {f"{row}/motion_mse" for row in rows} <= set(found)
    assert max(found.values()) < 1e-9
    page = (tmp_path / "report" / "index.html").read_text()
    for words in ("Repeats the frame before", "best of its samples", "baseline at its best temperature"):
        assert words in page


def test_the_baselines_temperature_is_chosen_on_other_episodes(tmp_path: Path, data: Path, tokens) -> None:
    run_eval(tmp_path, data, "model", **FAST, **CONTROL)
    choice = told(tmp_path)["control_choice"]
    assert len(choice["episodes"]) == 2
    assert set(choice["episodes"]).isdisjoint(told(tmp_path)["episodes"])
    assert [(one["temperature"], one["top_k"]) for one in choice["tried"]] == [(0.0, 0), (0.5, 0), (0.5, 5)]
    best = min(choice["tried"], key=lambda one: one["motion_mse"])
    assert choice["temperature"] == best["temperature"]
    chosen = sorted((tmp_path / "control" / "frames").glob("*.npz"))
    run_infer(
        tmp_path / "again", data, "base", frames=4, episodes="2,3,4", temperature=best["temperature"], top_k=best["top_k"]
    )
    again = sorted((tmp_path / "again" / "frames").glob("*.npz"))
    assert all(np.array_equal(load(a).pred, load(b).pred) for a, b in zip(chosen, again, strict=True))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"validation": "1,2"}, "is scored as well"),
        ({"validation": None}, "has no validation part"),
        ({"baseline": "noisy"}, "draws from a distribution over codes"),
        ({"baseline": None}, "control = true needs baseline=RUN"),
    ],
)
def test_a_control_that_would_mean_nothing_is_refused(tmp_path: Path, data: Path, tokens, changes, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        run_eval(tmp_path, data, "model", **{**FAST, **CONTROL, **changes})
    if "no validation part" in sentence:  # found out before anything is imagined
        assert not (tmp_path / "frames").exists()


@pytest.mark.parametrize("name", ["model", "single"])
def test_repetition_is_counted_in_tokens_and_in_pixels(tmp_path: Path, data: Path, tokens, name: str) -> None:
    """A network that has no preference and takes the first code repeats itself; what repeats in tokens does in pixels."""
    tokens[name].net.lm_head.weight.data.zero_()
    run_eval(
        tmp_path, data, name, episodes="all", temperature=0.0, frames=6, metrics=("mse", "motion_psnr"), permutations=0
    )
    files = [load(path) for path in sorted((tmp_path / "frames").glob("*.npz"))]
    scores = told(tmp_path)["repetition"]
    own = np.array([p.repeats.mean() for p in files])
    truth = np.array([p.truth_repeats.mean() for p in files])
    assert scores["tokens"]["model"]["rate"]["mean"] == pytest.approx(own.mean())
    assert scores["tokens"]["truth"]["rate"]["mean"] == pytest.approx(truth.mean())
    assert scores["tokens"]["model"]["beyond_truth"]["mean"] == pytest.approx((own - truth).mean())
    assert own.mean() > 0
    for p in files:
        pixels = repeats(p.pred[1:])
        assert (pixels >= p.repeats[0, 1:]).all()
    rate = np.mean([repeats(p.pred[1:]).mean() for p in files])
    assert scores["pixels"]["model"]["rate"]["mean"] == pytest.approx(rate)
    assert scores["pixels"]["truth"]["rate"]["mean"] == 0


def test_rates_of_repetition() -> None:
    frames = np.array([3, 3, 5, 5, 5, 6])[:, None, None] * np.ones((1, 2, 2), int)
    assert repeats(frames).tolist() == [True, False, True, True, False]
    frames[1, 0, 0] = 4
    assert repeats(frames).tolist() == [False, False, True, True, False]
    assert beyond(np.array([0.5, 0.1]), np.array([0.2, 0.2])).tolist() == pytest.approx([0.3, -0.1])


def test_history_and_its_actions_reach_a_single_step_model(tmp_path: Path, data: Path, tokens) -> None:
    """From frame 3 on it is shown frames 2 and 3 and the row between them; without a shorter history it begins there itself."""
    seen: list[np.ndarray] = []
    model = tokens["single"]
    keep = model.set_past_actions
    model.set_past_actions = lambda rows: (seen.append(rows), keep(rows))[1]
    run_infer(tmp_path / "late", data, "single", frames=3, start=3, episodes="0")
    assert seen[0][:, :, 0, 0].tolist() == [[2.0]]
    model.least_context = 2
    run_infer(tmp_path / "first", data, "single", frames=3, episodes="0")
    assert seen[-1][:, :, 0, 0].tolist() == [[0.0]]
    assert load(next((tmp_path / "first" / "frames").glob("*.npz"))).frame_index == 1


def test_other_models_are_scored_as_before(tmp_path: Path, data: Path, models) -> None:
    run_eval(tmp_path, data, "noisy", **FAST)
    scores = told(tmp_path)
    assert not {"repetition", "control_choice"} & set(scores)
    assert set(scores["summary"]) == {"model", "copy_last", "ceiling", "shifted"}
    assert set(scores["summary"]["model"]) == {"mse", "ssim", "motion_psnr"}
