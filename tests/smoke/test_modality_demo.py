"""``make modality-demo`` told in seconds: every arm, an intervention, a simulator and the report, on a few episodes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

QUICK = ("arms=[A, C]", "epochs=1", "d_model=32", "train.batch=16")


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch):
    """``scripts/modality_demo.py`` as a module; its neighbours are found as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("modality_demo", ROOT / "scripts" / "modality_demo.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "modality_demo", module)
    spec.loader.exec_module(module)
    return module


def test_the_whole_way(demo, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gym_pusht")
    monkeypatch.setattr(demo, "INTERVENED", ("C",))
    monkeypatch.setattr(demo, "ACTING", ("A", "C"))
    out = tmp_path / "demo"
    argv = ["--out", out, "--env", "pusht", "--episodes", 6, "--steps", 16, "--tokens", 8, "--seeds", 1, "--trials", 2]
    argv = [str(word) for word in (*argv, *(word for pair in QUICK for word in ("--train", pair)))]
    assert demo.main(argv) == 0
    typed = [line.split()[2:4] for line in capfd.readouterr().out.splitlines() if line.startswith("$ ")]
    assert [words[0] for words in typed] == ["scripts/simulate.py", "tokenize-world", "train", "eval", "eval", "eval"]
    assert [words[1] for words in typed[3:]] == ["intervene", "policy", "offline"]
    success = json.loads((out / "success" / "result.json").read_text())["metrics"]["rows"]
    assert [row["trials"] for row in success] == [2, 2]
    report = (out / "report" / "report" / "REPORT.md").read_text()
    assert "| A" in report
    assert "| C" in report
    assert json.loads((out / "summary.json").read_text())
    assert demo.main(argv) == 0
    assert "already done" in capfd.readouterr().out
