"""From scores to the report: effects that were put in come out, and every number on paper is the JSON's."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from worldsim.commands import _modality_report, _modality_tables
from worldsim.commands._modality_comparison import About, assemble
from worldsim.commands._modality_figures import training_curves
from worldsim.commands._modality_summary import Scores, Truth
from worldsim.core.files import read_json, write_json
from worldsim.report.document import Grid, Value, as_markdown, render

E, H, A, K, N = 12, 4, 2, 3, 16
HEADINGS = (
    "1. Setup",
    "2. Models",
    "3. Training Curves",
    "4. Offline Evaluation",
    "4.1 Metrics",
    "4.2 Open-loop Rollouts",
    "5. Real Robot Evaluation",
    "5.1 Protocol",
    "5.2 Results",
    "6. World Tokens & Imagination",
    "6.1 Codebook & Tokens",
    "6.2 Future Token Visualization",
    "7. Discussion",
    "8. Future Work",
)
WINDOWS = np.arange(3, 3 + E)


def scores(level: float, ratio: float | None = None, seed: int = 0, noise: float = 0.02) -> Scores:
    """A run whose error per sample is ``level`` times one that all arms share; wrong tokens multiply it by ``ratio``."""
    shared = np.random.default_rng(7).uniform(0.5, 1.5, (E, 1, 1))
    wobble = 1 + noise * np.random.default_rng([seed, round(level * 1000)]).normal(size=(E, H, A))
    error = level * shared * wobble * WINDOWS[:, None, None]
    world = {
        "top1": np.full((E, K), 0.5) * WINDOWS[:, None],
        "top5": np.full((E, K), 0.8) * WINDOWS[:, None],
        "bits": np.full((E, K), 1.5) * WINDOWS[:, None],
        "change_top1": np.full((E, K), 0.1) * WINDOWS[:, None],
    }
    if ratio is None:
        return Scores(error, parameters=1000)
    corrupted = {"random": error * ratio, "graded:0": error * (1 + (ratio - 1) / 2), "graded:1": error * ratio}
    far = {"random": 2.0, "graded:0": 1.0, "graded:1": 4.0}
    return Scores(error, world, corrupted, far, attention=0.1, gradient=0.5, parameters=1234, ms=1.25)


TRUTH = Truth(
    WINDOWS,
    1,
    np.array([2.0, 10.0]),
    {
        "copy_top1": np.full((E, K), 0.4) * WINDOWS[:, None],
        "copy_bits": np.full((E, K), 2.0) * WINDOWS[:, None],
        "bigram_top1": np.full((E, K), 0.45) * WINDOWS[:, None],
        "change": np.full((E, K), 0.5) * WINDOWS[:, None],
    },
)


def about(**more) -> About:
    setup = {"robot": "simulated"}
    return About(
        "data/x", [f"e{k}" for k in range(E)], ["x", "y"], ["m", "1"], 3, H, K, setup, {"optimiser": "AdamW"}, **more
    )


@pytest.fixture(scope="module")
def comparison() -> dict:
    arms = {
        "C": {s: scores(0.8, 1.5, s) for s in range(3)},
        "A": {s: scores(1.0, seed=s) for s in range(3)},
        "B": {s: scores(0.8, seed=s + 10) for s in range(3)},
    }
    return assemble(arms, TRUTH, about(), less={0.25: {"A": {0: scores(2.0)}, "C": {0: scores(1.2)}}})


def test_effects_that_were_put_in_come_out(comparison: dict) -> None:
    c = comparison
    assert list(c["arms"]) == ["A", "B", "C"]
    outcomes = {(d["arm"], d["base"]): d["outcome"] for d in c["differences"]}
    assert outcomes == {("C", "A"): "lower", ("C", "B"): "no difference shown", ("B", "A"): "lower"}
    relative = next(d["relative"] for d in c["differences"] if d["base"] == "A" and d["arm"] == "C")
    assert relative == pytest.approx(-0.2, abs=0.02)
    found = c["arms"]["C"]["interventions"]["random"]
    assert found["reading"] == "used"
    assert found["ratio"]["mean"] == pytest.approx(1.5)
    assert np.allclose(found["by_joint"]["mean"] + found["by_step"]["mean"], 1.5)
    assert c["conclusion"].startswith("World tokens lowered held-out action error (C over A, B over A)")
    assert "the world input of C is used" in c["conclusion"]


def test_means_are_per_sample_and_physical_errors_scale(comparison: dict) -> None:
    own = comparison["arms"]["A"]
    run = [scores(1.0, seed=s).error for s in range(3)]
    whole = np.mean(run, axis=0)
    assert own["action_mse"]["mean"] == pytest.approx(whole.mean(axis=(1, 2)).sum() / WINDOWS.sum())
    assert own["by_joint_physical"]["mean"] == pytest.approx(
        whole.mean(axis=1).sum(0) / WINDOWS.sum() * np.array([4.0, 100.0])
    )
    assert own["action_mse_physical"]["mean"] == pytest.approx(np.mean(own["by_joint_physical"]["mean"]))
    assert np.mean(own["by_step"]["mean"]) == pytest.approx(own["action_mse"]["mean"])


def test_token_numbers(comparison: dict) -> None:
    world = comparison["arms"]["C"]["world"]
    assert world["top1"]["mean"] == pytest.approx(0.5)
    assert world["bits"]["mean"] == pytest.approx(1.5)
    assert world["skill"]["mean"] == pytest.approx(0.25)
    assert world["change_top1"]["mean"] == pytest.approx(0.2), "of the half that changes"
    assert comparison["baselines"]["copy_top1"]["mean"] == pytest.approx(0.4)
    assert comparison["arms"]["A"]["world"] is None


def test_report_has_every_heading_and_the_json_numbers(comparison: dict, tmp_path: Path) -> None:
    """The numbers that a reader finds in REPORT.md, in the page and in the CSVs are those of the JSON file."""
    write_json(tmp_path / "comparison.json", comparison)
    c = read_json(tmp_path / "comparison.json")
    render(_modality_report.document(c), tmp_path / "report")
    text, page = ((tmp_path / "report" / name).read_text() for name in ("REPORT.md", "index.html"))
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    for heading in HEADINGS:
        assert heading in headings
        assert heading.replace("&", "&amp;") in page
    assert [h for h in headings if h in HEADINGS] == list(HEADINGS), "in the original order"
    assert c["conclusion"] in text
    rows = list(csv.DictReader((tmp_path / "report" / "tables" / "action_error.csv").open()))
    for row, (arm, own) in zip(rows, c["arms"].items()):
        assert row["arm"] == _modality_tables.label(arm)
        assert float(row["action MSE (normalised)"]) == own["action_mse"]["mean"]
        assert float(row["action MSE (normalised) low"]) == own["action_mse"]["low"]
        assert f"{own['action_mse']['mean']:.4g} [{own['action_mse']['low']:.4g} … {own['action_mse']['high']:.4g}]" in text
        assert f"{own['action_mse']['mean']:.4g}" in page
    ratios = list(csv.DictReader((tmp_path / "report" / "tables" / "interventions.csv").open()))
    assert float(ratios[0]["ratio"]) == c["arms"]["C"]["interventions"]["random"]["ratio"]["mean"]


def test_every_number_of_every_table_is_in_the_json(comparison: dict) -> None:
    """No table computes anything of its own."""
    c = json.loads(json.dumps(comparison))
    known = set(_numbers(c))
    for doc in (_modality_report.document(c), _modality_report.intervention_document(c)):
        cells = [cell for grid in doc.grids() for row in grid.rows for cell in row if isinstance(cell, Value)]
        assert len(cells) > 20
        for cell in cells:
            assert {v for v in (cell.mean, cell.low, cell.high) if v is not None} <= known
        assert all(len(row) == len(grid.columns) for grid in doc.grids() for row in grid.rows)


def _numbers(value: object):
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield value


def test_closed_loop_says_the_command_or_shows_the_trials(comparison: dict) -> None:
    without = _modality_report.document(comparison)
    protocol = next(s for s in without.sections if s.title == "5.1 Protocol")
    assert any("worldsim eval policy" in str(block) for block in protocol.blocks)
    rows = [{"arm": "C", "successes": 7, "trials": 10, "rate": 0.7, "low": 0.4, "high": 0.9}]
    loop = {"rows": rows, "protocol": {"task": "push"}, "comments": []}
    shown = _modality_report.document({**comparison, "closed_loop": loop})
    grid = next(b for s in shown.sections if s.title == "5.2 Results" for b in s.blocks if isinstance(b, Grid))
    assert grid.rows[0][:2] == ["C (World modality)", "7 / 10"]


def test_one_seed_claims_no_difference() -> None:
    c = assemble({"A": {0: scores(1.0)}, "C": {0: scores(0.5, 1.0)}}, TRUTH, about())
    assert c["differences"][0]["outcome"] == "insufficient"
    assert "Cannot be said: seeds 1 of at least 3" in str(_modality_report.discussion(c)[1])
    assert c["arms"]["C"]["interventions"]["random"]["reading"] == "unused"


def test_data_efficiency_compares_shares(comparison: dict) -> None:
    rows = {(row["arm"], row["fraction"]): row["action_mse"]["mean"] for row in comparison["efficiency"]}
    assert set(rows) == {("A", 0.25), ("C", 0.25), ("A", 1.0), ("B", 1.0), ("C", 1.0)}
    assert rows["A", 0.25] == pytest.approx(2 * rows["A", 1.0], rel=0.05)


def test_interventions_alone_speak_of_every_arm_and_compare_none() -> None:
    arms = {"C": {0: scores(1.0, 1.5)}, "C_hist": {0: scores(1.1, 1.0)}}
    c = assemble(arms, TRUTH, about(), alone=True)
    assert c["differences"] == []
    assert c["conclusion"].startswith("The policy uses its world input: the world input of C is used")
    assert "the world input of C_hist is not used" in c["conclusion"]
    assert c["conclusion"] in as_markdown(_modality_report.intervention_document(c))


@pytest.mark.parametrize(("level", "seeds", "said"), [(1.2, 3, True), (0.8, 3, False), (1.2, 1, False)])
def test_an_upper_bound_that_is_none_is_said(level: float, seeds: int, said: bool) -> None:
    """Where true futures do not help, predicted ones cannot be judged; with too few seeds not even that is claimed."""
    arms = {
        "A": {s: scores(1.0, seed=s) for s in range(seeds)},
        "C_oracle": {s: scores(level, seed=s) for s in range(seeds)},
    }
    told = _modality_report.cautions(assemble(arms, TRUTH, about(), resamples=100))
    assert any("Even the true futures do not lower the error" in text for text in told) is said


def test_curves_of_arms_that_predict_nothing_are_not_drawn(tmp_path: Path) -> None:
    """The first program logs accuracy 0 for A."""
    rows = [{"step": k, "train/loss": 1.0 / k, "val/action_mse": 1.0, "val/world_acc": 0.0} for k in (1, 2)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = [figure["path"] for figure in training_curves(tmp_path, {"A": [tmp_path / "run"]})]
    assert names == ["curves/action_mse.png", "curves/loss.png"]
