"""A command in a process of its own that is killed with SIGKILL in the middle of its training."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT
from worldsim.train.tracking import METRICS, read_rows


def kill_after_rows(words: Sequence[object], run: Path, rows: int, later: float = 0.0, patience: float = 200.0) -> None:
    """Start ``worldsim WORDS`` and kill it ``later`` seconds after ``run/metrics.jsonl`` has that many rows.

    The run must not have come to its end: it has left a state and no result.
    """
    command = [sys.executable, "-m", "worldsim.cli.main", *map(str, words)]
    told = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + patience
    while len(read_rows(run / METRICS)) < rows and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(later)
    process.kill()
    process.wait()
    assert len(read_rows(run / METRICS)) >= rows
    assert not (run / "result.json").exists()
