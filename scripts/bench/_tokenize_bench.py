"""The body of `tokenize.py`: its arms in turns, the table, and the last line."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import _tokenize_arms as arms
import torch

from worldsim.core import registry
from worldsim.encoders import _vision


def small(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ours and the frame-by-frame way in turns, with the offline backbone; the fastest turn of each counts."""
    data = arms.make(folder / "small", options.episodes, options.frames)
    work = arms.Work.of(data, _vision.load("random-conv"), options.codes, options.batch, options.device)
    seconds: dict[str, list[float]] = {"ours": [], "frame_by_frame": []}
    for _ in range(options.turns):
        took, mine = arms.ours(work, folder / "columns")
        seconds["ours"].append(took)
        took, theirs = arms.frame_by_frame(work, folder)
        seconds["frame_by_frame"].append(took)
    best = {name: min(took) for name, took in seconds.items()}
    return {
        "ratio": round(best["frame_by_frame"] / best["ours"], 2),
        "frames_per_second": {name: round(work.frames / took, 1) for name, took in best.items()},
        "same_tokens": round(float((mine == theirs).mean()), 4),
        "frames": work.frames,
    }


def dino(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ours and the bare backbone in turns, at DINOv2-base geometry."""
    plugin = registry.get("encoders", "dinov2")
    encoder = plugin.tiny() if options.quick else plugin.base()
    data = arms.make(folder / "dino", 1, options.dino_frames)
    work = arms.Work.of(data, encoder, max(2, options.dino_frames // 8), options.dino_batch, options.device)
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(options.dino_turns):
        seconds["bare"].append(arms.bare(work))
        seconds["ours"].append(arms.ours(work, folder / "columns")[0])
    best = {name: min(took) for name, took in seconds.items()}
    return {
        "floor_ratio": round(best["bare"] / best["ours"], 3),
        "floor_frames_per_second": {name: round(work.frames / took, 3) for name, took in best.items()},
        "floor_seconds": {name: [round(t, 2) for t in took] for name, took in seconds.items()},
        "floor_model": "tiny twin" if options.quick else "DINOv2-base geometry, random weights, 224x224",
        "floor_parameters": sum(p.numel() for p in encoder.parameters()),
        "floor_frames": work.frames,
    }


def arguments(about: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few frames and a tiny twin: shows that everything runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--frames", type=int, default=150, help="frames per episode")
    parser.add_argument("--codes", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dino-frames", type=int, default=32)
    parser.add_argument("--dino-batch", type=int, default=16)
    parser.add_argument("--dino-turns", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where to write; a temporary folder by default")
    options = parser.parse_args()
    if options.quick:
        options.episodes, options.frames, options.codes, options.turns = 1, 16, 4, 1
        options.dino_frames, options.dino_batch, options.dino_turns = 16, 8, 1
    return options


def main(about: str = "") -> int:
    options = arguments(about)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        first = small(options, Path(folder))
        rates = first["frames_per_second"]
        print(f"random-conv, {first['frames']} frames of {arms.SIDE}x{arms.SIDE}: ours {rates['ours']} frames/s, ", end="")
        print(f"frame by frame {rates['frame_by_frame']}: {first['ratio']} times; same tokens {first['same_tokens']:.1%}")
        second = dino(options, Path(folder))
        rates = second["floor_frames_per_second"]
        print(
            f"{second['floor_model']}: ours {rates['ours']} frames/s, bare backbone {rates['bare']}: {second['floor_ratio']}"
        )
    report = {
        **first,
        **second,
        "compared": "frames per second of worldsim tokenize-world --tokenizer kmeans (columns written) with LeRobotDataset[i], "
        "float pictures through a processor and one frame per forward pass (ratio, random-conv) and with the bare backbone on "
        "batches in memory (floor_ratio, DINOv2-base geometry); fastest turn of each, in turns",
        "quick": options.quick,
        "batch": {"random-conv": options.batch, "dinov2": options.dino_batch},
        "machine": f"{platform.platform()}, {options.device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}",
    }
    print(json.dumps(report))
    return 0
