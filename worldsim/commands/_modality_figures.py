"""The charts of the world-modality reports: training curves of the runs, error by step, graded corruption, data efficiency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.policies._world_modality_arms import ARMS
from worldsim.report.plots import Curve, plot
from worldsim.train.tracking import METRICS, read_rows

Json = Mapping[str, Any]
CURVES = (
    (
        "action_mse",
        "Action MSE (normalised): training dashed, validation solid",
        ("train/action_loss", "val/action_mse"),
        True,
    ),
    ("world_accuracy", "World tokens: top-1 accuracy on validation windows", ("val/world_acc",), False),
    ("world_top5", "World tokens: top-5 accuracy on validation windows", ("val/world_top5",), False),
    ("loss", "Combined training loss", ("train/loss",), True),
)
"""File, title, keys of ``metrics.jsonl``, logarithmic. # source: charbelsan/world-modality-vla, its wandb keys"""


BANDS = ("A", "C")


def colour_of(arms: Iterable[str]) -> dict[str, int]:
    """Each arm keeps its colour in all charts."""
    known = ["A", "C", "B", "C_hist", "C_pred", "C_no_input", "C_oracle", "A_plus"]
    return {arm: known.index(arm) if arm in known else len(known) for arm in arms}


def training_curves(folder: Path, runs: Mapping[str, Sequence[Path]]) -> list[dict[str, str]]:
    """Write ``folder/curves/*.png`` from the runs' ``metrics.jsonl``, the mean over an arm's seeds; returns the figures.

    Args:
        runs: arm -> its run folders, one per seed.
    """
    rows = {arm: [read_rows(run / METRICS) for run in paths] for arm, paths in runs.items()}
    colours, out = colour_of(runs), []
    for name, title, keys, log in CURVES:
        curves = []
        for arm, per_seed in rows.items():
            for key in keys:
                if "world" in key and not ARMS[arm].predicts:
                    continue  # logged as 0 for an arm that predicts no token
                x, y = mean_series([series(one, key) for one in per_seed])
                if len(x):
                    dashed = len(keys) > 1 and key.startswith("train/")
                    label = arm if not dashed else f"{arm}, training"
                    curves.append(Curve(label, x, y, dashed=dashed, colour=colours[arm]))
        if curves:
            path = f"curves/{name}.png"
            plot(folder / path, curves, title, "step", log=log)
            out.append({"path": path, "caption": f"{title}; mean over seeds."})
    return out


def series(rows: Sequence[Json], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which ``key`` was logged, and its values."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return np.array([step for step, _ in found], float), np.array([value for _, value in found], float)


def mean_series(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over seeds at the steps that all of them have."""
    if not parts:
        return np.zeros(0), np.zeros(0)
    steps = sorted(set.intersection(*(set(x.tolist()) for x, _ in parts)))
    values = [dict(zip(x.tolist(), y.tolist())) for x, y in parts]
    return np.array(steps), np.array([np.mean([one[step] for one in values]) for step in steps])


def error_by_step(folder: Path, c: Json) -> list[dict[str, str]]:
    """How the error grows over the chunk; bands over episodes for A and C alone, or they would hide each other."""
    x, colours = np.arange(c["horizon"], dtype=float), colour_of(c["arms"])
    curves = [_banded(arm, x, s["by_step"], colours[arm], band=arm in BANDS) for arm, s in c["arms"].items()]
    plot(folder / "error_by_step.png", curves, "Held-out action MSE (normalised) by step of the chunk", "step of the chunk")
    return [
        {
            "path": "error_by_step.png",
            "caption": "Action error by step of the chunk; bands (A, C): 95 % over episodes, unpaired.",
        }
    ]


def token_accuracy(folder: Path, c: Json) -> list[dict[str, str]]:
    """Top-1 accuracy by frames ahead, beside what copying today's token gives."""
    x, colours = np.arange(1, c["future"] + 1, dtype=float), colour_of(c["arms"])
    told = {arm: s["world"] for arm, s in c["arms"].items() if s["world"] is not None}
    if not told:
        return []
    curves = [_banded(arm, x, own["top1_by_step"], colours[arm], band=False) for arm, own in told.items()]
    for name, key in (("copy", "copy_top1_by_step"), ("bigram", "bigram_top1_by_step")):
        curves.append(
            Curve(name, x, _floats(c["baselines"][key]["mean"]), dashed=True, colour=7 if name == "bigram" else 6)
        )
    plot(folder / "token_accuracy.png", curves, "World tokens: top-1 accuracy by frames ahead", "frames ahead")
    caption = "Held-out token accuracy; dashed what copying today's token, and the likeliest successor, would get."
    return [{"path": "token_accuracy.png", "caption": caption}]


def graded(folder: Path, c: Json) -> list[dict[str, str]]:
    """Ratio by how far the wrong centroid lies from the true one."""
    curves, colours = [], colour_of(c["arms"])
    for arm, s in c["arms"].items():
        found = [
            one for name, one in s["interventions"].items() if name.startswith("graded:") and one["distance"] is not None
        ]
        found.sort(key=lambda one: one["distance"])
        if len(found) > 1:
            bounds = {key: [one["ratio"][key] for one in found] for key in ("mean", "low", "high")}
            curves.append(_banded(arm, _floats([one["distance"] for one in found]), bounds, colours[arm]))
    if not curves:
        return []
    title = "Corrupted / clean action MSE by distance of the wrong centroid"
    plot(folder / "graded.png", curves, title, "mean distance from the true centroid")
    caption = "Graded corruption: a policy that reads the token's meaning errs more the farther the wrong token lies."
    return [{"path": "graded.png", "caption": caption}]


def ratios_by_step(folder: Path, c: Json) -> list[dict[str, str]]:
    """One chart per arm: every corruption's ratio over the steps of the chunk."""
    out = []
    for arm, s in c["arms"].items():
        found = {name: one for name, one in s["interventions"].items() if not name.startswith("graded:")}
        curves = [
            Curve(name, np.arange(c["horizon"], dtype=float), _floats(one["by_step"]["mean"]), colour=k)
            for k, (name, one) in enumerate(found.items())
        ]
        if curves:
            path = f"ratios_by_step_{arm}.png"
            plot(folder / path, curves, f"{arm}: corrupted / clean action MSE by step of the chunk", "step of the chunk")
            out.append({"path": path, "caption": f"{arm}: every intervention's ratio by step of the chunk."})
    return out


def data_efficiency(folder: Path, c: Json) -> list[dict[str, str]]:
    """Error by share of the training episodes."""
    colours = colour_of(dict.fromkeys(row["arm"] for row in c["efficiency"]))
    curves = []
    for arm, colour in colours.items():
        rows = sorted((row for row in c["efficiency"] if row["arm"] == arm), key=lambda row: row["fraction"])
        bounds = {key: [row["action_mse"][key] for row in rows] for key in ("mean", "low", "high")}
        curves.append(_banded(arm, _floats([row["fraction"] for row in rows]), bounds, colour))
    title = "Held-out action MSE (normalised) by share of the training episodes"
    plot(folder / "efficiency.png", curves, title, "share of the training episodes", log=True)
    return [{"path": "efficiency.png", "caption": "Data efficiency; bands are 95 % over episodes."}]


def _banded(label: str, x: np.ndarray, bounds: Json, colour: int, band: bool = True) -> Curve:
    """A curve with its interval, from lists ``mean``, ``low``, ``high``."""
    mean, low, high = (_floats(bounds[key]) for key in ("mean", "low", "high"))
    return Curve(label, x, mean, low if band else None, high if band else None, colour=colour)


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)
