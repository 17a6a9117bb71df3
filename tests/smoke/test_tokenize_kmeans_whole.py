"""World tokens as a user makes them: with a backbone from a folder, a page to look at, a codebook reused; the benchmark."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import moving
from tests.conftest import ROOT
from worldsim.core import registry
from worldsim.data import columns

BENCH = ROOT / "scripts" / "bench"


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A tiny DINOv2 as a repository would hold it."""
    from transformers import BitImageProcessor

    twin = registry.get("encoders", "dinov2").tiny()
    twin.module.save_pretrained(tmp_path / "dino")
    BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}).save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


def test_tokenize_then_look_then_reuse(worldsim, tmp_path: Path, backbone: Path) -> None:
    data = moving.write(tmp_path / "data", 6, 30)
    words = ("tokenize-world", data, "--tokenizer", "kmeans", "--num-tokens", 12, "--vision-model", backbone, "--out", "a")
    code, out, _ = worldsim(*words, "--split", "train", "--json")
    assert code == 0
    first = json.loads(out)["metrics"]
    assert first["codes"] == 12
    assert set(first["statistics"]) == {"train"}
    assert (tmp_path / "a" / "cache" / "moving" / "train_world_tokens.int.npy").exists()

    code, out, _ = worldsim("eval", "tokens", data, "--tokenizer", "a", "--out", "page", "--json")
    assert code == 0
    told = json.loads(out)["metrics"]["statistics"]
    assert told["train"] == first["statistics"]["train"]
    tokens = columns.Column(data / first["columns"][1])
    every, fitted_on = tokens.keys(), _fitted_on(tmp_path / "a")
    held_out = [name for name in every if name not in fitted_on]
    assert told["test"]["episodes"] == len(held_out) == 2
    pairs = [(tokens.load(name)[:-1], tokens.load(name)[1:]) for name in held_out]
    copied = np.concatenate([(now == later).ravel() for now, later in pairs]).mean()
    assert told["test"]["copy"][0] == pytest.approx(copied, abs=1e-6)
    page = (tmp_path / "page" / "report" / "index.html").read_text()
    for name in ("codebook.png", "baselines.png", "use.png"):
        assert name in page
        assert (tmp_path / "page" / "report" / name).stat().st_size > 1000

    code, out, _ = worldsim(
        "tokenize-world", data, "--tokenizer", "kmeans", "--checkpoint", "a", "--split", "held-out", "--out", "b"
    )
    assert code == 0
    assert f"next:  worldsim train --config world_modality_c {data} --tokenizer a" in out
    assert (tmp_path / "b" / "cache" / "moving" / "test_world_tokens.int.npy").exists()


def _fitted_on(run: Path) -> list[str]:
    return json.loads((run / "checkpoint" / "card.json").read_text())["fitted_on"]


def test_what_is_typed_wrongly_is_one_sentence_and_a_command(worldsim, tmp_path: Path) -> None:
    data = moving.write(tmp_path / "data", 3, 9)
    code, _, err = worldsim("eval", "tokens", data, "--tokenizer", "nowhere")
    assert code == 1
    assert f"worldsim tokenize-world {data} --tokenizer kmeans" in err
    code, _, err = worldsim("tokenize-world", data, "--tokenizer", "kmeans", "--vision-model", "dinov3")
    assert code == 1
    assert "there is no vision model 'dinov3'" in err
    assert "Traceback" not in err
    code, out, _ = worldsim("tokenize-world", data, "--config", "kmeans_smoke", "--dry-run")
    assert code == 0
    assert "64 codes, fitted on the training episodes" in out


def test_the_benchmark_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(sys, "argv", ["tokenize.py", "--quick", "--device", "cpu"])
    bench = importlib.import_module("_tokenize_bench")
    assert bench.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["ratio"] > 0
    assert found["floor_ratio"] > 0
    assert found["same_tokens"] > 0.8, "both ways must tell the same frames alike"
    assert {"compared", "machine"} <= found.keys()


def test_its_name_does_not_hide_the_standard_librarys_module() -> None:
    """Every other benchmark has this folder first on its path, and much imports ``tokenize``."""
    code = f"import sys; sys.path.insert(0, {str(BENCH)!r}); import tokenize; print(tokenize.generate_tokens.__module__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "tokenize"
