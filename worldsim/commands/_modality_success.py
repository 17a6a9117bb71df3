"""Closed-loop success for the report: what ``eval policy`` counted, by arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldsim.commands._modality_comparison import ORDER
from worldsim.core.errors import UserError
from worldsim.core.files import read_json
from worldsim.policies._world_modality_card import POLICY
from worldsim.report.proportions import wilson
from worldsim.train.checkpoint import CARD


def read(folders: Sequence[str]) -> dict[str, Any] | None:
    """``{"rows", "protocol", "comments"}`` of one or several result folders of ``eval policy``; None without any.

    The trials of all seeds of an arm are counted together.

    Raises:
        UserError: a folder is no result of ``eval policy``, or none of its policies is an arm.
    """
    counts: dict[str, list[int]] = {}
    protocol: dict[str, Any] = {}
    for folder in folders:
        path = Path(folder) / "result.json" if Path(folder).is_dir() else Path(folder)
        record = read_json(path)
        rows = record.get("metrics", {}).get("rows") if isinstance(record, dict) else None
        if not isinstance(rows, list) or record.get("command") != "eval-policy":
            raise UserError(f"{path} is no result of eval policy", "worldsim eval policy --env pusht --policy RUN")
        for row in rows:
            arm = arm_of(row["policy"])
            if arm is not None and row.get("rate") is not None:
                mine = counts.setdefault(arm, [0, 0])
                mine[0] += row["successes"]
                mine[1] += row["trials"]
        protocol |= _protocol(record["metrics"], path)
    if folders and not counts:
        raise UserError(
            f"{folders[0]} has counted no world-modality policy", "worldsim eval policy --env pusht --policy RUN"
        )
    return {"rows": _rows(counts), "protocol": protocol, "comments": _comments(counts)} if counts else None


def arm_of(policy: str | Path) -> str | None:
    """The arm of a run folder or its checkpoint; None for anything else."""
    for card in (Path(policy) / "checkpoint" / CARD, Path(policy) / CARD):
        if card.is_file():
            found = read_json(card)
            return found.get("arm") if found.get("policy") == POLICY else None
    return None


def _protocol(metrics: dict[str, Any], path: Path) -> dict[str, Any]:
    return {
        "Task definition": f"{metrics['env']} (simulated, no real robot)",
        "Number of trials per model": f"{metrics['episodes']} per trained seed",
        "Initial condition control": "the same environment seeds for every policy",
        "Success criterion": "the environment's own, within " + str(metrics["steps"]) + " steps",
        "Counted in": str(path),
    }


def _rows(counts: dict[str, list[int]]) -> list[dict[str, Any]]:
    known = [arm for arm in ORDER if arm in counts] + [arm for arm in counts if arm not in ORDER]
    return [{"arm": arm, **wilson(*counts[arm]).to_json()} for arm in known]


def _comments(counts: dict[str, list[int]]) -> list[str]:
    """What the intervals allow one to say about C, A and B."""
    out = []
    for arm, base in (("C", "A"), ("C", "B"), ("B", "A")):
        if arm in counts and base in counts:
            a, b = wilson(*counts[arm]), wilson(*counts[base])
            apart = a.low > b.high or a.high < b.low
            words = "the intervals do not overlap" if apart else "the intervals overlap, so no difference is claimed"
            out.append(f"{arm} minus {base}: {a.rate - b.rate:+.1%}; {words}.")
    return [*out, "Trials of an arm's seeds share environment seeds, so they are counted as if they were independent."]
