"""``make demo`` told in a minute: the whole way on a few episodes, every number recomputed from the frames it leaves."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import ROOT


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch):
    """``scripts/demo.py`` as a module; its neighbours are found as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)
    spec.loader.exec_module(module)
    return module


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Per frame, dB, capped at 100."""
    error = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))
    return np.minimum(100.0, 10 * np.log10(255.0**2 / np.maximum(error, 1e-9)))


def test_the_whole_way(demo, tmp_path: Path, capfd) -> None:
    out = tmp_path / "demo"
    argv = ["--out", out, "--episodes", 10, "--steps", 9, "--horizon", 8, "--metaworld", 0]
    argv = [str(word) for word in [*argv, "--train", "train.steps=2", "--train", "frames=9", "--train", "sampling.steps=2"]]
    assert demo.main(argv) == 0
    typed = [line for line in capfd.readouterr().out.splitlines() if line.startswith("$ ")]
    assert [line.split()[2] for line in typed] == [
        "scripts/simulate.py",
        "convert",
        "extract-latents",
        "finetune-wan",
        "finetune-wan",
        "infer",
        "eval",
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["episodes"], summary["horizon"]) == (2, 8)
    for row in ("tuned", "base", "copy_last", "ceiling"):
        assert set(summary[row]) == {"psnr", "ssim", "motion_psnr"}
        assert all(np.isfinite(value) for value in summary[row].values())
    assert {"permutation_gap", "permutation_p", "seconds", "peak_rss_mb"} <= set(summary)
    assert 100 < summary["peak_rss_mb"] < 6000
    assert "<html" in (out / "report" / "index.html").read_text()
    recompute(out, summary)
    the_base_is_untuned(out / "base")
    assert (
        subprocess.run([sys.executable, ROOT / "scripts" / "recompute.py", out], stdout=subprocess.DEVNULL).returncode == 0
    )
    told_again(demo, argv, out, capfd)


def the_base_is_untuned(run: Path) -> None:
    """What makes the conditioner and the LoRA act is exactly zero."""
    tensors = load_file(run / "checkpoint" / "model.safetensors")
    acting = [name for name in tensors if name.startswith("conditioner.net.4.") or ".lora_B" in name]
    assert len(acting) > 10
    assert not any(tensors[name].any() for name in acting)


def test_what_is_not_shown_is_said_and_fails(demo) -> None:
    good = {
        "episodes": 20,
        "horizon": 16,
        "tuned": {"motion_psnr": 14.0, "psnr": 20.0, "ssim": 0.8},
        "base": {"motion_psnr": 13.5},
        "copy_last": {"motion_psnr": 12.0, "psnr": 20.0, "ssim": 0.8},
        "permutation_gap": 0.8,
        "permutation_p": 0.0099,
    }
    assert demo.misses(good) == []
    assert demo.telling(good)
    worse = {
        "tuned": [{"motion_psnr": 13.9, "psnr": 20.0, "ssim": 0.8}, {"motion_psnr": 14.0, "psnr": 19.9, "ssim": 0.8}],
        "base": [{"motion_psnr": 13.6}],
        "copy_last": [{"motion_psnr": 12.0, "psnr": 20.0, "ssim": 0.81}],
        "permutation_gap": [0.7, -1.0],
        "permutation_p": [0.01],
    }
    for key, values in worse.items():
        for value in values:
            assert demo.misses({**good, key: value})
    assert not demo.telling({**good, "episodes": 15})
    assert not demo.telling({**good, "horizon": 15})


def recompute(out: Path, summary: dict) -> None:
    """Anyone can: the frames hold truth, prediction, and what the ceiling was made of."""
    rows: dict[str, list[float]] = {"tuned": [], "copy_last": [], "ceiling": []}
    for path in sorted((out / "frames").glob("*.npz")):
        clip = np.load(path)
        truth, inferred = clip["truth"], np.load(out / "infer" / "frames" / path.name)
        assert truth.shape == clip["pred"].shape == (9, 64, 64, 3)
        assert clip["actions"].shape == (8, 1, 2)
        assert np.array_equal(clip["pred"], inferred["pred"]), "infer and eval video imagine the same"
        rows["tuned"].append(psnr(clip["pred"][1:], truth[1:]).mean())
        rows["copy_last"].append(psnr(np.repeat(truth[:1], 8, 0), truth[1:]).mean())
        rows["ceiling"].append(psnr(clip["reconstruction"][1:], truth[1:]).mean())
    for row, values in rows.items():
        assert len(values) == 2
        assert abs(np.mean(values) - summary[row]["psnr"]) < 1e-3, row


def told_again(demo, argv: list[str], out: Path, capfd) -> None:
    """The second time nothing is done; after a loss of what is shown, it is put back without training again."""
    before = (out / "summary.json").read_bytes()
    trained = (out / "tuned" / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    assert demo.main(argv) == 0
    assert (out / "summary.json").read_bytes() == before
    capfd.readouterr()
    (out / "summary.json").unlink()
    assert demo.main(argv) == 0
    assert capfd.readouterr().out.count("already done") >= 6
    assert (out / "tuned" / "checkpoint" / "model.safetensors").stat().st_mtime_ns == trained
    again, first = json.loads((out / "summary.json").read_text()), json.loads(before)
    for key in ("seconds", "peak_rss_mb"):
        del again[key], first[key]
    assert again == first


def test_a_failing_step_stops_the_story_and_says_how_to_go_on(demo, tmp_path: Path, capfd) -> None:
    argv = ["--out", str(tmp_path / "demo"), "--episodes", "2", "--steps", "0", "--metaworld", "0"]
    assert demo.main(argv) == 1
    err = capfd.readouterr().err
    assert "at least one step" in err
    assert "to start afresh: rm -r" in err


def test_without_opengl_the_story_goes_on_without_metaworld(demo, tmp_path: Path, capfd, monkeypatch) -> None:
    from worldsim.core.errors import UserError

    def no_gl(*args: object, **options: object) -> None:
        raise UserError("no OpenGL library", "sudo apt-get install -y libosmesa6")

    monkeypatch.setattr("simulate.envs.make", no_gl)
    demo.metaworld_too(demo.Story(out=tmp_path), demo.Teller())
    out, err = capfd.readouterr()
    assert "going on without Metaworld" in out
    assert "libosmesa6" in err
