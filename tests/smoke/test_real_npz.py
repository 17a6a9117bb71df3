"""RLVR-World's npz files of a real robot's dataset go through tokenizer, token model, reinforcement and scores directly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

COUNT, SIZE = 4, "32x40"


Run = Callable[..., tuple[int, str, str]]


def test_bridge_npz_is_tokenised_learnt_reinforced_and_scored(shared_data: Path, worldsim: Run, tmp_path: Path) -> None:
    told: list[dict] = []

    def run(*words: object) -> dict:
        code, out, err = worldsim(*words, "--device", "cpu", "--json")
        assert code == 0, err
        told.append(json.loads(out))
        return told[-1]["metrics"]

    data, tokenizer, model, better = (tmp_path / name for name in ("npz", "tokenizer", "model", "better"))
    source = shared_data / "bridge_rlds"
    run("convert", source, "--from", "rlds", "--to", "oxe-npz", "--out", data, "--episodes", f"0:{COUNT}")
    assert told[0].get("next", "").startswith("worldsim train --config fsq_compressive"), "what npz files are for"
    files = sorted(data.rglob("*.npz"))
    assert len(files) == COUNT
    with np.load(files[0]) as file:
        assert file["image"].dtype == np.uint8
        assert file["action"].shape == (len(file["image"]), 7)
    run("train", "--config", "smoke", data, "--size", SIZE, "--out", tokenizer)
    run("train", "--config", "token_smoke", data, "--tokenizer", tokenizer, "--out", model)
    assert run("rlvr", data, "--config", "smoke", "--model", model, "--out", better)["iterations"] == 2
    words = ("--model", better, "--baseline", model, "--frames", 2, "--out", tmp_path / "scores")
    assert run("eval", "video", data, "--config", "smoke", *words)["episodes"] == 1  # the held-out fifth
    assert (tmp_path / "scores" / "report" / "index.html").exists()
