"""From sums per episode to the numbers of ``comparison.json``: means per sample, intervals over episodes, differences, readings.

Shapes: ``E`` held-out episodes, ``H`` action steps, ``A`` action entries, ``K`` future frames. All arms share one set of draws,
so everything is paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldsim.report.clusters import Draws, Spread, plain
from worldsim.report.verdicts import Difference, Use, conclusion

PAIRS = (
    ("C", "A"),
    ("C", "B"),
    ("B", "A"),
    ("C", "A_plus"),
    ("C", "C_no_input"),
    ("C_hist", "A"),
    ("C_hist", "C"),
    ("C_pred", "A"),
    ("C_oracle", "A"),
)
"""What is compared, where both arms are there. The sentence speaks of the first three; of the best others where these lack."""
SPOKEN = 3
HEADLINE = "random"
"""The corruption that decides whether a world input is used, as in the original experiment."""


@dataclass
class Scores:
    """What one trained run does on the held-out windows, summed over each episode's windows.

    Attributes:
        error: ``[E, H, A]`` squared errors of normalised actions.
        world: ``top1 top5 bits change_top1`` -> ``[E, K]``, summed over windows and token places; empty without a world head.
        corrupted: corruption -> ``[E, H, A]``, as ``error`` with wrong world tokens; empty without a world input.
        distance: corruption -> mean distance of the wrong centroids from the true ones.
        attention: share of the action positions' attention that goes to world tokens; gradient: norm of the action loss's
            gradient with respect to the world input's embeddings, over that with respect to all inputs' embeddings.
        parameters: of the network. ms: median milliseconds per control step with the encoder; None where it was not measured.
    """

    error: np.ndarray
    world: dict[str, np.ndarray] = field(default_factory=dict)
    corrupted: dict[str, np.ndarray] = field(default_factory=dict)
    distance: dict[str, float] = field(default_factory=dict)
    attention: float | None = None
    gradient: float | None = None
    parameters: int = 0
    ms: float | None = None


@dataclass
class Truth:
    """What holds for all runs.

    Attributes:
        windows: ``[E]`` windows of each episode. places: P, tokens per frame.
        scale: ``[A]``, physical units per normalised unit.
        baselines: ``copy_top1 copy_bits bigram_top1 change`` -> ``[E, K]`` sums over windows and token places.
    """

    windows: np.ndarray
    places: int
    scale: np.ndarray
    baselines: dict[str, np.ndarray] = field(default_factory=dict)


def mean_over_seeds(parts: Sequence[np.ndarray]) -> np.ndarray:
    """``[E, …]``: the seeds' mean of every episode's sum."""
    return np.mean(np.stack(parts), axis=0)


def arm_summary(seeds: Mapping[int, Scores], truth: Truth, draws: Draws) -> dict[str, Any]:
    """Everything about one arm: the mean over its seeds, with intervals over episodes, and each seed's own number."""
    runs = list(seeds.values())
    error = mean_over_seeds([run.error for run in runs])
    windows, squared = truth.windows, truth.scale**2
    flat, physical = error.mean(axis=(1, 2)), (error * squared).mean(axis=(1, 2))
    times = [run.ms for run in runs if run.ms is not None]
    out: dict[str, Any] = {
        "seeds": list(seeds),
        "parameters": runs[0].parameters,
        "ms_per_step": float(np.median(times)) if times else None,
        "action_mse": draws.pooled(flat, windows).to_json(),
        "action_mse_seeds": [_pooled(run.error.mean(axis=(1, 2)), windows) for run in runs],
        "action_mse_physical": draws.pooled(physical, windows).to_json(),
        "by_joint": draws.pooled(error.mean(axis=1), windows).to_json(),
        "by_joint_physical": draws.pooled((error * squared).mean(axis=1), windows).to_json(),
        "by_step": draws.pooled(error.mean(axis=2), windows).to_json(),
        "by_step_physical": draws.pooled((error * squared).mean(axis=2), windows).to_json(),
        "world": _world(runs, truth, draws) if runs[0].world else None,
        "attention": _mean([run.attention for run in runs]),
        "gradient": _mean([run.gradient for run in runs]),
    }
    out["interventions"] = interventions(runs, draws) if runs[0].corrupted else {}
    return out


def _pooled(sums: np.ndarray, samples: np.ndarray) -> float | None:
    total = samples.sum()
    return float(sums.sum() / total) if total else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _world(runs: Sequence[Scores], truth: Truth, draws: Draws) -> dict[str, Any]:
    """Token accuracies, cross-entropy and skill, over all horizons and per horizon."""
    sums = {name: mean_over_seeds([run.world[name] for run in runs]) for name in runs[0].world}
    horizons = sums["top1"].shape[1]
    count = np.repeat(truth.windows[:, None] * truth.places, horizons, axis=1).astype(np.float64)
    change, copy = truth.baselines["change"], truth.baselines["copy_bits"]
    out: dict[str, Any] = {}
    for name in ("top1", "top5", "bits"):
        out[name] = draws.pooled(sums[name].sum(1), count.sum(1)).to_json()
        out[f"{name}_by_step"] = draws.pooled(sums[name], count).to_json()
    out["change_top1"] = draws.pooled(sums["change_top1"].sum(1), change.sum(1)).to_json()
    out["change_top1_by_step"] = draws.pooled(sums["change_top1"], change).to_json()
    out["skill"] = draws.ratio((copy - sums["bits"]).sum(1), copy.sum(1)).to_json()
    out["skill_by_step"] = draws.ratio(copy - sums["bits"], copy).to_json()
    out["top1_seeds"] = [_pooled(run.world["top1"].sum(1), count.sum(1)) for run in runs]
    return out


def interventions(runs: Sequence[Scores], draws: Draws) -> dict[str, Any]:
    """Corruption -> ratio corrupted / clean action error, overall, by entry and by step, and its reading."""
    clean = mean_over_seeds([run.error for run in runs])
    out: dict[str, Any] = {}
    for name in runs[0].corrupted:
        wrong = mean_over_seeds([run.corrupted[name] for run in runs])
        whole = draws.ratio(wrong.mean(axis=(1, 2)), clean.mean(axis=(1, 2)))
        known = [run.distance[name] for run in runs if name in run.distance]
        use = Use("", name, *_bounds(whole), whole.count)
        out[name] = {
            "ratio": whole.to_json(),
            "reading": use.reading,
            "ratio_seeds": [float(run.corrupted[name].sum() / run.error.sum()) for run in runs],
            "by_joint": draws.ratio(wrong.mean(axis=1), clean.mean(axis=1)).to_json(),
            "by_step": draws.ratio(wrong.mean(axis=2), clean.mean(axis=2)).to_json(),
            "distance": float(np.mean(known)) if known else None,
        }
    return out


def _bounds(spread: Spread) -> tuple[float, float, float]:
    return float(spread.mean), float(spread.low), float(spread.high)


def baseline_summary(truth: Truth, draws: Draws) -> dict[str, Any]:
    """The copy and bigram baselines on the same windows, and how often a token changes."""
    if not truth.baselines:
        return {}
    horizons = truth.baselines["change"].shape[1]
    count = np.repeat(truth.windows[:, None] * truth.places, horizons, axis=1).astype(np.float64)
    out: dict[str, Any] = {}
    for name, sums in truth.baselines.items():
        out[name] = draws.pooled(sums.sum(1), count.sum(1)).to_json()
        out[f"{name}_by_step"] = draws.pooled(sums, count).to_json()
    return out


def differences(arms: Mapping[str, Mapping[int, Scores]], truth: Truth, draws: Draws) -> list[Difference]:
    """Every pair of :data:`PAIRS` that is there, over the seeds that both have."""
    out = []
    for arm, base in PAIRS:
        if arm not in arms or base not in arms:
            continue
        shared = [seed for seed in arms[arm] if seed in arms[base]]
        if not shared:
            continue
        ours, theirs = ([arms[name][seed].error.mean(axis=(1, 2)) for seed in shared] for name in (arm, base))
        found = draws.difference(mean_over_seeds(ours), mean_over_seeds(theirs), truth.windows)
        each = [_pooled(a - b, truth.windows) for a, b in zip(ours, theirs)]
        seeds = tuple(float("nan") if value is None else value for value in each)
        out.append(Difference(arm, base, *_bounds(found), seeds, found.count))
    return out


def uses(arms: Mapping[str, dict[str, Any]]) -> list[Use]:
    """One per arm with a world input: what the deciding corruption (else the first) does to it."""
    out = []
    for name, summary in arms.items():
        found = summary["interventions"]
        if not found:
            continue
        which = HEADLINE if HEADLINE in found else next(iter(found))
        ratio = found[which]["ratio"]
        mean, low, high = (float("nan") if ratio[key] is None else ratio[key] for key in ("mean", "low", "high"))
        out.append(Use(name, which, mean, low, high, ratio["episodes"]))
    return out


def difference_json(found: Difference, base_mse: float | None) -> dict[str, Any]:
    """``relative``: of the base arm's error."""
    values = {key: plain(getattr(found, key)) for key in ("mean", "low", "high")}
    relative = found.mean / base_mse if base_mse else None
    more = {"relative": plain(relative if relative is not None else np.nan), "seeds": plain(found.seeds)}
    return {"arm": found.arm, "base": found.base, **values, **more, "episodes": found.episodes, "outcome": found.outcome}


def sentence(found: Sequence[Difference], used: Sequence[Use]) -> str:
    """The one that leads the report: C, A and B against each other where they are there, and the use of C's token."""
    first = [d for d in found if (d.arm, d.base) in PAIRS[:SPOKEN]] or list(found[:SPOKEN])
    main = [u for u in used if u.arm == "C"] or list(used[:1])
    return conclusion(first, main)
