"""How fast `worldsim finetune-wan` trains, beside the same step written plainly with diffusers + peft, and beside the floor.

Ours: latents and text from columns, fetched ahead, batch B. Plain: batch 1, the video read, the VAE and the text encoder run
in every step. Floor: the bare network on one batch in memory. Random weights of the named geometry, painted clips; arms take
turns in one process and the fastest turn of each counts. Peak memory comes from a process per arm. Last line: one JSON object.

    python scripts/bench/finetune.py [--model tiny-ti2v] [--batch 16] [--steps 40] [--turns 3]
    python scripts/bench/finetune.py --model wan2.1-t2v-1.3b --device cuda --batch 1 --steps 5 --turns 1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import _finetune_arms as arms
import _finetune_models as models
import torch
from _peak import peak_bytes

from worldsim.core.errors import UserError
from worldsim.worker import resolve_device

SAMPLES = 8
"""Sampling steps of a rollout."""
EPISODES = 6


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-ti2v", help="any t2v or ti2v geometry")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="clips per step of ours (default 16; 1 for a real geometry)")
    parser.add_argument("--frames", type=int, help="per clip (default 17; 49 for a real geometry)")
    parser.add_argument("--size", help="HxW (default 64x64; 480x832, or 704x1280 for the 5B)")
    parser.add_argument("--steps", type=int, default=40, help="counted steps per turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--arm", choices=("ours", "ours-again", "plain", "nothing"), help=argparse.SUPPRESS)
    return parser.parse_args()


def work_of(options: argparse.Namespace, folder: Path) -> arms.Work:
    """The work that the options ask for; its data is made in ``folder`` unless it is there."""
    base = models.random_base(options.model, resolve_device(options.device))
    real = options.model.startswith("wan")
    size = options.size or ("64x64" if not real else "704x1280" if base.geometry.family == "ti2v" else "480x832")
    height, width = (int(side) for side in size.split("x"))
    frames = options.frames or (49 if real else 17)
    data = folder / "data"
    if not data.exists():
        models.make_data(data, EPISODES, frames + frames // 2, (height, width))
    batch = options.batch or (1 if real else 16)
    return arms.Work(base, data, base.device, (height, width), frames, batch, options.steps, SAMPLES, real)


def one_arm(options: argparse.Namespace, folder: Path) -> None:
    """The child process of a memory measurement: one arm, a few steps, then its peak in bytes."""
    work = work_of(options, folder)
    if options.arm.startswith("ours"):
        arms.ours(work, folder / f"run-{options.arm}", work.batch, steps=2)
    elif options.arm == "plain":
        arms.Plain(work).turn(steps=2)
    print(torch.cuda.max_memory_allocated() if work.device == "cuda" else peak_bytes())


def peaks_mb(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Peak memory of a process per arm, MB: resident, or the device's on cuda. ``ours-again`` finds its columns made;
    ``nothing`` has imported what all of them import."""
    words = [f"--{name}={value}" for name, value in vars(options).items() if value is not None and name != "arm"]
    out = {}
    for arm in ("nothing", "plain", "ours", "ours-again"):
        command = [sys.executable, __file__, *words, f"--scratch={folder}", f"--arm={arm}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        out[arm] = round(int(done.stdout.split()[-1]) / 1e6, 1)
    return out


def measure(work: arms.Work, folder: Path, turns: int) -> dict[str, Any]:
    """The fastest turn of each arm, rollouts, and what the columns cost."""
    shutil.rmtree(work.data / "columns", ignore_errors=True)
    began = time.perf_counter()
    arms.ours(work, folder / "run", work.batch, steps=1)
    first = time.perf_counter() - began
    began = time.perf_counter()
    arms.ours(work, folder / "run", work.batch, steps=1)
    encode = first - (time.perf_counter() - began)
    plain = arms.Plain(work)
    found: dict[str, list[arms.Turn]] = {name: [] for name in ("ours", "ours_1", "plain", "floor")}
    for _ in range(turns):
        found["ours"].append(arms.ours(work, folder / "run", work.batch))
        found["plain"].append(plain.turn())
        found["ours_1"].append(arms.ours(work, folder / "run-1", 1))
        found["floor"].append(plain.floor())
    best = {name: min(of, key=lambda turn: turn.seconds) for name, of in found.items()}
    rollout = {"plain": plain.imagine(), "ours": arms.imagine(work, folder / "run")}
    return {"best": best, "rollout": rollout, "encode_seconds": encode}


def report(work: arms.Work, found: dict[str, Any], memory: dict[str, float]) -> dict[str, Any]:
    """The numbers of the last line; prints the table."""
    best: dict[str, arms.Turn] = found["best"]
    clips = {"ours": work.batch, "ours_1": 1, "plain": 1, "floor": work.batch}
    rate = {name: clips[name] / turn.seconds for name, turn in best.items()}
    height, width = (side // work.base.geometry.multiple for side in work.size)
    tokens = (1 + (work.frames - 1) // 4) * height * width
    flops, peak = models.train_flops(work.base.geometry, tokens), models.peak_rate(work.device, work.dtype)
    titles = {"ours": f"ours, batch {work.batch}", "ours_1": "ours, batch 1", "plain": "plain, batch 1", "floor": "floor"}
    print(f"{'arm':<16}{'s/step':>10}{'clips/s':>10}{'waits':>8}{'of matmul rate':>16}{'MFU':>8}")
    for name, turn in best.items():
        sheet = f"{flops * rate[name] / peak['sheet']:.3f}" if peak["sheet"] else "-"
        used = flops * rate[name] / peak["matmul"]
        print(f"{titles[name]:<16}{turn.seconds:>10.4f}{rate[name]:>10.2f}{turn.waited:>8.1%}{used:>16.4f}{sheet:>8}")
    idle = 0.0 if work.device == "cuda" else memory["nothing"]
    parts = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in best["plain"].parts.items())
    print(f"plain step: {parts}; columns of ours: {found['encode_seconds']:.1f} s, once")
    print(
        f"rollout of {work.frames - 1} frames: ours {found['rollout']['ours']:.3f} s, plain {found['rollout']['plain']:.3f} s"
    )
    print("peak memory, MB: " + ", ".join(f"{name} {value:.0f}" for name, value in memory.items()))
    return {
        "ratio": round(rate["ours"] / rate["plain"], 2),
        "floor_ratio": round(rate["ours"] / rate["floor"], 3),
        "memory_ratio": round(memory["plain"] / memory["ours"], 3),
        "memory_growth_ratio": round((memory["plain"] - idle) / max(memory["ours"] - idle, 0.1), 3),
        "memory_ratio_train": round(memory["plain"] / memory["ours-again"], 3),
        "data_share": round(best["ours"].waited, 4),
        "plain_data_share": round(best["plain"].waited, 4),
        "clips_per_second": {name: round(value, 3) for name, value in rate.items()},
        "seconds_per_step": {name: round(turn.seconds, 5) for name, turn in best.items()},
        "plain_parts": {name: round(value, 5) for name, value in best["plain"].parts.items()},
        "encode_seconds": round(found["encode_seconds"], 2),
        "rollout_seconds": {name: round(value, 4) for name, value in found["rollout"].items()},
        "rollout_ratio": round(found["rollout"]["plain"] / found["rollout"]["ours"], 2),
        "peak_mb": memory,
        "flops_per_clip": flops,
        "mfu": round(flops * rate["ours"] / peak["sheet"], 4) if peak["sheet"] else None,
        "mfu_plain": round(flops * rate["plain"] / peak["sheet"], 4) if peak["sheet"] else None,
        "matmul_flops_per_second": peak["matmul"],
        "compared": "clips per second of worldsim finetune-wan (columns, fetched ahead) with a plain diffusers + peft loop "
        "(batch 1, video, VAE and text in each step; ratio) and with the bare network on a batch in memory (floor_ratio)",
        "model": work.base.model,
        "clip": f"{work.frames} frames {work.size[0]}x{work.size[1]}, {tokens} tokens, {work.dtype}, batch {work.batch}",
        "machine": f"{peak['name'] or 'CPU'}, {platform.platform()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}",
    }


def main() -> int:
    options = arguments()
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        if options.arm:
            one_arm(options, options.scratch)
            return 0
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            work = work_of(options, Path(folder))
            memory = peaks_mb(options, Path(folder))
            found = measure(work, Path(folder), options.turns)
            print(json.dumps(report(work, found, memory)))
    except UserError as error:
        print(f"{error.sentence}; try: {error.command}" if error.command else error.sentence, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
