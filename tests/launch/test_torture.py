"""One kill each of what `scripts/torture.py` kills ten times, and proof that it would notice a difference."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def torture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torture", ROOT / "scripts" / "torture.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["torture"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_kill_at_work_is_survived(
    torture: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training loop has its own test (``test_kill_9_then_the_same_command_gives_the_same_bytes``)."""
    infer = torture.VICTIMS["infer"]
    light = replace(infer, words=tuple(word.replace("{model}", "copy") for word in infer.words), before=())
    monkeypatch.setitem(torture.VICTIMS, "infer", light)
    assert torture.main(["convert", "extract-latents,infer", "--kills", "1", "--seed", "3"]) == 0
    said = capsys.readouterr().out
    for command in ("convert", "extract-latents", "infer"):
        assert f"{command}: 1 of 1 killed runs ended in the same bytes" in said
    assert said.splitlines()[-1] == "VERDICT: 3 of 3 killed runs ended in the same bytes"


def test_a_process_that_outlives_the_kill_is_found(torture: ModuleType, tmp_path: Path) -> None:
    """A child in a session of its own, as a rank has, is not hit by the signal to the group."""
    if not Path("/proc/self/environ").exists():
        assert list(torture.environments()) == []
        return
    told = os.environ | {"WORLDSIM_HOME": str(tmp_path / ".home")}
    child = subprocess.Popen(["sleep", "60"], env=told, start_new_session=True)
    wanted = f"WORLDSIM_HOME={tmp_path / '.home'}".encode()
    deadline = time.monotonic() + 10
    found: list[int] = []
    while not found and time.monotonic() < deadline:  # until it has become `sleep`
        found = [number for number, values in torture.environments() if wanted in values.split(b"\0")]
    child.kill()
    child.wait()
    assert found == [child.pid]
    assert child.pid not in [number for number, _ in torture.environments()]


def test_a_difference_is_noticed_and_named(torture: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.h5").write_bytes(b"1")
    (tmp_path / "out" / "result.json").write_text('{"seconds": 1}')
    (tmp_path / "out" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "seconds": 0.1}\n')
    truth = torture.payload(tmp_path)
    (tmp_path / "out" / "result.json").write_text('{"seconds": 2}')
    (tmp_path / "out" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "seconds": 0.3}\n')
    assert torture.compare(truth, torture.payload(tmp_path)) == ""
    (tmp_path / "out" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "seconds": 0.1}\n')
    assert torture.compare(truth, torture.payload(tmp_path)) == "OTHER BYTES out/metrics.jsonl (1)"
    (tmp_path / "out" / "a.h5").rename(tmp_path / "out" / "b.h5")
    said = torture.compare(truth, torture.payload(tmp_path))
    assert "MISSING out/a.h5 (1)" in said
    assert "EXTRA out/b.h5 (1)" in said
