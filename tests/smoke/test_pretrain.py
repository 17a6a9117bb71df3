"""The bundled base: its recipe runs, and what lies in the package is what the recipe says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from worldsim.nn import flow
from worldsim.world_models import _wan_geometries as geometries
from worldsim.world_models._wan_net import NetSpec, WanNet

ROOT = Path(__file__).resolve().parents[2]
BASE = geometries.BUNDLED / "worldsim-tiny"
MOST_BYTES = 12 * 2**20


@pytest.fixture
def pretrain(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("pretrain", ROOT / "scripts" / "pretrain.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pretrain", module)
    spec.loader.exec_module(module)
    return module


def test_the_package_holds_what_the_recipe_says():
    weights = list(BASE.rglob("*.safetensors"))
    assert len(weights) == 2
    assert sum(path.stat().st_size for path in weights) <= MOST_BYTES
    recipe = yaml.safe_load((ROOT / "scripts" / "pretrain.yaml").read_text())
    assert yaml.safe_load((BASE / "recipe.yaml").read_text()) == recipe
    log = np.genfromtxt(BASE / "training.csv", delimiter=",", names=True)
    assert log["step"][-1] == recipe["train"]["steps"]
    assert (BASE / "README.md").read_text().startswith("---\nlicense: apache-2.0")
    net = geometries.resolve("worldsim-tiny").transformer()
    own = geometries.GEOMETRIES["worldsim-tiny"].transformer
    assert {key: net.config[key] for key in own if key != "patch_size"} == {
        k: v for k, v in own.items() if k != "patch_size"
    }


def test_a_predicted_sample_is_turned_into_the_velocity_of_its_path():
    base = geometries.resolve("worldsim-tiny")
    net = WanNet(base.transformer(), base.geometry, NetSpec(2, 1, "patch-add", 8, 2, 2.0))
    x0, noise = torch.randn(2, 2, 64, 5, 8, 8).unbind(0)
    for sigma in (1.0, 0.6, 0.1):
        at = torch.full((2,), sigma)
        x = flow.noised(x0, noise, at.view(-1, 1, 1, 1, 1))
        torch.testing.assert_close(net._velocity(x0, x, at), flow.velocity(x0, noise), atol=1e-4, rtol=1e-4)


def test_the_recipe_runs_resumes_and_bundles(pretrain, tmp_path, monkeypatch):
    pytest.importorskip("gym_pusht")
    recipe = yaml.safe_load((ROOT / "scripts" / "pretrain.yaml").read_text())
    names = ("velocity-many", "target-many")
    recipe["worlds"] = {name: recipe["worlds"][name] | {"episodes": 2} for name in names}
    recipe |= {"steps_per_episode": 17, "codec": recipe["codec"] | {"windows": 32}}
    recipe["train"] |= {"steps": 2, "batch": 2, "checkpoint_every": 1, "log_every": 1}
    path = tmp_path / "recipe.yaml"

    def run(*words: str) -> None:
        path.write_text(yaml.safe_dump(recipe))
        out = ["--out", str(tmp_path / "out"), "--recipe", str(path), "--to", str(tmp_path / "bases" / "worldsim-tiny")]
        assert pretrain.main([*out, *words]) == 0

    run()
    first = (tmp_path / "out" / "train" / "checkpoint" / "model.safetensors").read_bytes()
    recipe["train"]["steps"] = 3
    run()
    assert (tmp_path / "out" / "train" / "checkpoint" / "model.safetensors").read_bytes() != first
    monkeypatch.setattr(geometries, "BUNDLED", tmp_path / "bases")
    geometries.bundled_revision.cache_clear()
    base = geometries.resolve("worldsim-tiny")
    assert base.vae("cpu").encode(np.zeros((1, 5, 64, 64, 3), np.uint8)).shape == (1, 64, 2, 8, 8)
    assert base.transformer().config.num_layers == geometries.GEOMETRIES["worldsim-tiny"].transformer["num_layers"]
    geometries.bundled_revision.cache_clear()
