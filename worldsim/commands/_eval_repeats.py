"""How often a token world model repeats itself, beside the truth's own rate: for the page and ``scores.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldsim.commands._eval_scores import finite
from worldsim.data.predictions import Prediction
from worldsim.metrics.repetition import beyond, repeats
from worldsim.metrics.scoring import BASELINE, CONTROL, MODEL
from worldsim.report.page import Tile
from worldsim.report.statistics import Interval, interval

TRUTH = "truth"
DEFINITION = (
    "repetition",
    "Share of predicted frames that are identical, number for number, to the one before: in tokens (the first one against the "
    "given frame's; the truth's rate is that of the truth through the tokenizer), and in pixels (among predicted frames, against "
    "the raw truth). Beyond truth: an episode's rate minus its truth's own. Compare models at equal temperature.",
)


@dataclass
class Repeats:
    """Rates per episode, ``kind -> row -> [E]``; kinds are ``tokens`` and ``pixels``. Empty for models without tokens."""

    rates: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, p: Prediction, baseline: Prediction | None = None, control: Prediction | None = None) -> None:
        """One episode; nothing happens where the model writes no tokens."""
        if p.repeats is None or p.truth is None:
            return
        if p.truth_repeats is not None:
            self._note("tokens", TRUTH, p.truth_repeats)
        self._note("pixels", TRUTH, repeats(p.truth[1:]))
        for row, one in ((MODEL, p), (BASELINE, baseline), (CONTROL, control)):
            if one is not None and one.repeats is not None:
                self._note("tokens", row, one.repeats)
            if one is not None:
                self._note("pixels", row, np.stack([repeats(sample[1:]) for sample in one.samples]))

    def _note(self, kind: str, row: str, same: np.ndarray) -> None:
        rate = float(np.mean(same)) if same.size else float("nan")
        self.rates.setdefault(kind, {}).setdefault(row, []).append(rate)

    def summary(self, seed: int, resamples: int) -> dict[str, dict[str, dict[str, Interval]]]:
        """``kind -> row -> {"rate", "beyond_truth"}`` as intervals over episodes (``truth`` has its rate alone)."""
        out: dict[str, dict[str, dict[str, Interval]]] = {}
        for kind, rows in self.rates.items():
            truth = np.array(rows.get(TRUTH, []))
            for row, values in rows.items():
                own = np.array(values)
                cell = {"rate": interval(own, seed, resamples)}
                if row != TRUTH and len(truth) == len(own):
                    cell["beyond_truth"] = interval(beyond(own, truth), seed, resamples)
                out.setdefault(kind, {})[row] = cell
        return out


def as_json(summary: dict[str, dict[str, dict[str, Interval]]]) -> dict[str, Any]:
    """Plain values; null where a rate is not defined."""

    def plain(cell: dict[str, Interval]) -> dict[str, Any]:
        return {name: {key: finite(getattr(i, key)) for key in ("mean", "low", "high")} for name, i in cell.items()}

    return {kind: {row: plain(cell) for row, cell in rows.items()} for kind, rows in summary.items()}


def tile(summary: dict[str, dict[str, dict[str, Interval]]]) -> Tile | None:
    """The headline; None for models without tokens."""
    rows = summary.get("tokens", {})
    if MODEL not in rows:
        return None
    own = rows[MODEL]
    others = [f"{row} {rows[row]['rate'].mean:.1%}" for row in (TRUTH, BASELINE, CONTROL) if row in rows]
    over = own.get("beyond_truth")
    span = "" if over is None else f"; beyond the truth {over.mean:+.1%} [{over.low:+.1%} … {over.high:+.1%}]"
    tone = "bad" if over is not None and over.low > 0 else "plain"
    return Tile(
        "Repeats the frame before", f"{own['rate'].mean:.1%}", f"of frames, in tokens; {', '.join(others)}{span}", tone
    )
