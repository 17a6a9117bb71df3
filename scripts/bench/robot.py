"""How steady `worldsim robot run` is beside a bare sleep loop of the same run. Last line: one JSON object.

    python scripts/bench/robot.py [--hz 10] [--seconds 5] [--runs 3]

Each run drives the fake robot with a sine wave: two cameras, clamps, watchdogs and the log on disk are all at work. A tick's
error is |period - 1/hz|. The bare loop sleeps until the same deadlines and does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ALLOWED_MS = 2.0
"""What the loop may add to the bare loop's 99th percentile."""


def one(hz: float, seconds: float, mode: str, folder: Path) -> dict[str, Any]:
    """The metrics of one run, in a process of its own."""
    words = ["robot", "run", "--policy", "scripted:sine", "--robot", "fake", "--hz", f"{hz:g}", "--seconds", f"{seconds:g}"]
    more = ["--mode", mode, "--out", str(folder), "--json", "--set", "film=false", "--set", "late_periods=100"]
    command = [sys.executable, "-m", "worldsim.cli.main", *words, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["metrics"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hz", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mode", choices=["watch", "live"], default="live")
    given = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(given.runs):
            metrics = one(given.hz, given.seconds, given.mode, Path(folder) / str(k))
            found.append(metrics)
            ours, bare = metrics["jitter"], metrics["bare"]
            print(
                f"run {k}: p99 {ours['p99_ms']:.3f} ms, bare {bare['p99_ms']:.3f} ms; median {ours['p50_ms']:.3f} ms, "
                f"bare {bare['p50_ms']:.3f} ms; {metrics['overruns']} overruns"
            )
    extra = [metrics["p99_above_bare_ms"] for metrics in found]
    ours, bare = (statistics.median(m[key]["p99_ms"] for m in found) for key in ("jitter", "bare"))
    print(
        json.dumps(
            {
                "ratio": round(ours / max(bare, 1e-9), 3),
                "floor_ratio": 1.0,
                "p99_ms": ours,
                "bare_p99_ms": bare,
                "p99_above_bare_ms": {
                    "median": round(statistics.median(extra), 4),
                    "worst": max(extra),
                    "allowed": ALLOWED_MS,
                },
                "realtime": found[0]["realtime"],
                "overruns": sum(metrics["overruns"] for metrics in found),
                "compared": "99th percentile of |period - 1/hz| of robot run and of a bare sleep loop in the same run",
                "hz": given.hz,
                "runs": given.runs,
                "load": round(os.getloadavg()[0], 2),
                "machine": platform.platform(),
            }
        )
    )


if __name__ == "__main__":
    main()
