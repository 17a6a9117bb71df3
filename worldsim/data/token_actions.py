"""Actions as tokens of a sequence: equally wide bins between two ends per dimension, the same ids for all dimensions.

Beside ``data/action_bins.py`` (LAPA's equal-frequency bins, as many per dimension as the data fills) these have the same number
of bins everywhere, so that one range of ids serves any action. The ends are the released model's smallest and largest value,
or quantiles: a few outliers otherwise stretch a dimension until most commands share a few bins (RT-1's dimension 11 runs from
-5.5 to 22.1 while commands lie within 1).

source: thuml/RLVR-World@e1b8b6f vid_wm/ivideogpt/ivideogpt/processor.py (min-max); spec 1.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worldsim.core.errors import UserError
from worldsim.core.files import read_json, write_json

RELEASED_BINS = 256
TINY = 1e-8
"""Added to a range's width, as in the source: the largest value then lies in the last bin, and a constant in the first."""


@dataclass(frozen=True)
class TokenActions:
    """Ranges of every action dimension.

    Attributes:
        low, high: float per dimension, physical units; what lies outside goes to the outermost bins.
        bins: ids per dimension.
        kind: how the ranges were found.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    bins: int = RELEASED_BINS
    kind: str = "minmax"

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or self.bins < 2:
            raise UserError(
                f"action ranges need two equally long rows of ends and 2 bins; got {len(self.low)}, {self.bins} bins"
            )
        if not all(np.isfinite([*self.low, *self.high])) or any(a > b for a, b in zip(self.low, self.high)):
            raise UserError("an action range is not finite, or ends below where it begins")

    @property
    def width(self) -> int:
        """A, the dimensions of an action row."""
        return len(self.low)

    @classmethod
    def fit(
        cls,
        actions: np.ndarray,
        bins: int = RELEASED_BINS,
        kind: Literal["quantile", "minmax"] = "quantile",
        tail: float = 0.01,
    ) -> TokenActions:
        """Ranges of training actions ``[N, A]``, physical units.

        Args:
            kind: ``minmax``; or ``quantile``, from the ``tail`` to the ``1 - tail`` quantile. A dimension that is constant
                between its quantiles but not beyond (a flag that is rarely set) keeps its smallest and largest value.

        Raises:
            UserError: there are no rows, or a value is not a finite number.
        """
        rows = np.asarray(actions, np.float64)
        if rows.ndim != 2 or not len(rows):
            raise UserError(f"action ranges need rows of values; got shape {rows.shape}")
        if not np.isfinite(rows).all():
            raise UserError(
                f"action dimension {int(np.argwhere(~np.isfinite(rows))[0, 1])} has a value that is not a finite number"
            )
        low, high = rows.min(0), rows.max(0)
        if kind == "quantile":
            ends = np.quantile(rows, (tail, 1 - tail), axis=0)
            wide = ends[1] > ends[0]
            low, high = np.where(wide, ends[0], low), np.where(wide, ends[1], high)
        return cls(tuple(low.tolist()), tuple(high.tolist()), bins, kind)

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Physical actions ``[..., A]`` as bins, int64 ``[..., A]`` in 0 … bins - 1.

        Raises:
            UserError: a value is NaN, or the width is not A.
        """
        rows = np.asarray(actions, np.float64)
        if rows.shape[-1:] != (self.width,):
            raise UserError(f"these action ranges take {self.width} values per row; got shape {rows.shape}")
        if np.isnan(rows).any():
            raise UserError(f"action dimension {int(np.argwhere(np.isnan(rows))[0, -1])} is not a number")
        low, high = np.array(self.low), np.array(self.high)
        share = np.clip((rows - low) / (high - low + TINY), 0.0, 1.0)
        return np.clip(np.floor(self.bins * share), 0, self.bins - 1).astype(np.int64)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Bins ``[..., A]`` as the middles of their ranges, float64 ``[..., A]``.

        Raises:
            UserError: a bin is out of range.
        """
        ids = np.asarray(tokens)
        if ids.dtype.kind not in "iu" or ids.shape[-1:] != (self.width,):
            raise UserError(f"action tokens must be whole numbers [..., {self.width}]; got {ids.dtype} {ids.shape}")
        if ids.size and (ids.min() < 0 or ids.max() >= self.bins):
            raise UserError(f"an action token is not between 0 and {self.bins - 1}: {ids.min()} … {ids.max()}")
        low, high = np.array(self.low), np.array(self.high)
        return low + (ids + 0.5) / self.bins * (high - low)

    def card(self) -> dict[str, Any]:
        """Plain data for a checkpoint's card; floats read back exactly."""
        return {"kind": self.kind, "bins": self.bins, "low": list(self.low), "high": list(self.high)}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> TokenActions:
        try:
            return cls(
                tuple(map(float, card["low"])), tuple(map(float, card["high"])), int(card["bins"]), str(card["kind"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the action ranges cannot be read: {error!r}") from error

    def save(self, path: Path) -> None:
        write_json(path, self.card())

    @classmethod
    def load(cls, path: Path) -> TokenActions:
        return cls.from_card(read_json(path))
