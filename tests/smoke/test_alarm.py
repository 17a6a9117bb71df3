"""The alarm, end to end: trained on true actions a model follows them; on another episode's, eval video says that it does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests import moving
from worldsim.world_models import _wan_geometries as geometries

EPISODES, STEPS = 80, 16
QUICK = {
    "lora.rank": 0,
    "history": 1,
    "cache.hop": 8,
    "train.steps": 240,
    "train.batch": 32,
    "train.lr": 4e-3,
    "train.conditioner_lr": 4e-3,
    "train.schedule": "cosine",
    "train.ema": 0.98,
    "train.log_every": 60,
    "train.checkpoint_every": 240,
    "flow.shift": 8,
    "sampling.steps": 1,
    "action_dropout": 0.0,
}
"""Every weight is trained from scratch; most of the time near pure noise, where nothing but the actions tells the future."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``true``, ``shuffled`` (every episode recorded with another one's actions) and the base to train."""
    folder = tmp_path_factory.mktemp("alarm")
    moving.write_base(folder / "bases")
    moving.write(folder / "true", EPISODES, STEPS)
    deal = np.roll(np.random.default_rng(0).permutation(EPISODES), 1)
    moving.write(folder / "shuffled", EPISODES, STEPS, deal)
    return folder


@pytest.mark.parametrize("trained_on", ["true", "shuffled"])
def test_a_model_of_shuffled_actions_is_reported_and_one_of_true_actions_is_not(
    worldsim, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_on: str
) -> None:
    monkeypatch.setattr(geometries, "BUNDLED", world / "bases")
    monkeypatch.setitem(geometries.GEOMETRIES, moving.GEOMETRY.name, moving.GEOMETRY)
    quick = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
    shape = ["--model", moving.GEOMETRY.name, "--size", "32x32", "--frames", 9]
    code, _, err = worldsim(
        "finetune-wan", world / trained_on, "--config", "smoke", *shape, *quick, "--out", tmp_path / "run"
    )
    assert code == 0, err
    code, out, err = worldsim(
        *(
            "eval",
            "video",
            world / "true",
            "--model",
            tmp_path / "run",
            "--frames",
            8,
            "--json",
            "--out",
            tmp_path / "eval",
        ),
        *("--set", "clips=1", "--set", "batch=16", "--set", "metrics=[psnr,motion_psnr]"),
    )
    assert code == 0, err
    result = json.loads(out)
    page = (tmp_path / "eval" / "report" / "index.html").read_text()
    alarms = ["IGNORES ITS ACTIONS" in text for text in (" ".join(result["notes"]), err, page)]
    found = result["metrics"]
    assert found["episodes"] >= 16
    assert found["follows_actions"] == (trained_on == "true")
    assert alarms == [trained_on == "shuffled"] * 3, "in result.json, on stderr and on the page, or nowhere"
    if trained_on == "true":
        assert found["permutation_gap"] > 2
        assert found["permutation_p"] < 0.001
        assert found["model"]["motion_psnr"] > found["copy_last"]["motion_psnr"] + 2
        assert found["model"]["motion_psnr"] > found["permuted"]["motion_psnr"] + 2
    else:
        assert abs(found["permutation_gap"]) < 0.5
