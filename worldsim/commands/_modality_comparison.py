"""``comparison.json``: everything that a world-modality report says, as plain values; the report invents no number of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from worldsim.commands._modality_summary import (
    Scores,
    Truth,
    arm_summary,
    baseline_summary,
    difference_json,
    differences,
    mean_over_seeds,
    sentence,
    uses,
)
from worldsim.report.clusters import Draws
from worldsim.report.verdicts import conclusion

ORDER = ("A", "A_plus", "B", "C", "C_no_input", "C_hist", "C_pred", "C_oracle")
Table = Mapping[str, Mapping[int, Scores]]
"""Arm -> seed -> what that run does."""


@dataclass
class About:
    """What is known beside the scores; all of it is copied into the comparison.

    Attributes:
        data: the dataset as named. episodes: held-out ids, in the order of ``E``.
        action_names, units: one per action entry. context, horizon, future: C, H, K.
        setup, training, codebook: (word, value) pairs of the report's sections 1, 2 and 6.1.
        delay: frames by which ``stale`` tokens are late. example_run: a run for commands to type.
        closed_loop: see ``_modality_success.read``; None where nothing was tried. notes: remarks, sentences.
        figures: section -> list of ``{"path", "caption"}`` relative to the report's folder. runs: arm -> its run folders.
    """

    data: str
    episodes: list[str]
    action_names: list[str]
    units: list[str]
    context: int
    horizon: int
    future: int
    setup: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    codebook: dict[str, Any] = field(default_factory=dict)
    delay: int = 8
    example_run: str | None = None
    closed_loop: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    figures: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    runs: dict[str, list[str]] = field(default_factory=dict)


def assemble(
    arms: Table,
    truth: Truth,
    about: About,
    seed: int = 0,
    resamples: int = 2000,
    less: Mapping[float, Table] | None = None,
    *,
    share: float = 1.0,
    alone: bool = False,
) -> dict[str, Any]:
    """The comparison as JSON-able values.

    Args:
        arms: runs on the largest ``share`` of training data there is. less: smaller share -> runs on it.
        seed: of the draws of episodes. alone: interventions alone; arms are not compared with each other.
    """
    draws = Draws.of(len(truth.windows), seed, resamples)
    arms = {name: arms[name] for name in sorted(arms, key=_place)}
    summaries = {name: arm_summary(runs, truth, draws) for name, runs in arms.items()}
    found, used = [] if alone else differences(arms, truth, draws), uses(summaries)
    return {
        **asdict(about),
        "windows": int(truth.windows.sum()),
        "resamples": resamples,
        "conclusion": conclusion([], used) if alone else sentence(found, used),
        "arms": summaries,
        "baselines": baseline_summary(truth, draws),
        "differences": [difference_json(d, summaries[d.base]["action_mse"]["mean"]) for d in found],
        "efficiency": _efficiency({**(less or {}), share: arms}, truth, draws) if less else [],
    }


def _efficiency(by_share: Mapping[float, Table], truth: Truth, draws: Draws) -> list[dict[str, Any]]:
    """One row per arm and share of the training episodes."""
    rows = []
    for fraction, table in sorted(by_share.items()):
        for arm, runs in table.items():
            error = mean_over_seeds([run.error.mean(axis=(1, 2)) for run in runs.values()])
            mse = draws.pooled(error, truth.windows).to_json()
            rows.append({"arm": arm, "fraction": fraction, "seeds": list(runs), "action_mse": mse})
    return rows


def _place(arm: str) -> tuple[int, str]:
    return (ORDER.index(arm) if arm in ORDER else len(ORDER), arm)
