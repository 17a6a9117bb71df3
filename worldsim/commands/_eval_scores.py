"""``scores.json`` of ``eval video``: every number, per row, episode and predicted frame."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldsim.core import registry
from worldsim.metrics.scoring import MODEL, Summary, Table


def scores_json(table: Table, summary: Summary, *, forced: bool = False, **more: Any) -> dict[str, Any]:
    """Everything as plain JSON; null where a value is not defined.

    Args:
        forced: the actions have seen the truth. more: further entries; those that are empty are left out.
    """
    gap = summary.gap
    return {
        **{key: value for key, value in more.items() if value},
        "teacher_forced": forced,
        "episodes": table.episodes,
        "horizon": next(iter(table.scores[MODEL].values())).shape[1],
        "units": {name: registry.card("metrics", name)["unit"] for name in table.scores[MODEL]},  # type: ignore[index]
        "summary": {
            row: {
                name: {
                    "mean": finite(i.mean),
                    "low": finite(i.low),
                    "high": finite(i.high),
                    "episodes": i.count,
                    "frames_left_out": table.undefined(row, name),
                }
                for name, i in by_name.items()
            }
            for row, by_name in summary.rows.items()
        },
        "sets": table.sets,
        "permutation": None
        if gap is None
        else {
            "metric": summary.gap_metric,
            "gap": finite(gap.interval.mean),
            "low": finite(gap.interval.low),
            "high": finite(gap.interval.high),
            "wins": gap.wins,
            "losses": gap.losses,
            "ties": gap.ties,
            "p": gap.p,
            "p_mean": gap.p_mean,
            "follows_actions": gap.follows,
            "per_horizon": {
                key: [finite(getattr(one, key)) for one in summary.gap_by_frame] for key in ("mean", "low", "high")
            },
        },
        "per_horizon": {
            row: {name: finite(table.per_horizon(row, name)) for name in by_name} for row, by_name in table.scores.items()
        },
        "per_episode": {
            row: {name: finite(values) for name, values in by_name.items()} for row, by_name in table.scores.items()
        },
    }


def finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, np.ndarray):
        return [finite(entry) for entry in value]
    return None if np.isnan(value) else float(value)
