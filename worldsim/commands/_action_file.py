"""Actions that a user brings in a file: one sequence for every episode, or one per episode."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldsim.core.errors import UserError, again
from worldsim.core.types import ActionSpec

KINDS = ".npy, .npz (one array per episode id) or .csv"


@dataclass(frozen=True)
class ActionFile:
    """Rows in physical units, ``[rows, A]``; ``[n, r, A]`` is taken as well.

    Attributes:
        path: where they came from.
        rows: the sequence for every episode; None when there is one per episode.
        by_episode: episode id -> rows.
    """

    path: Path
    rows: np.ndarray | None
    by_episode: dict[str, np.ndarray]

    @classmethod
    def read(cls, path: Path) -> ActionFile:
        """Raises :class:`UserError` naming the file when it is missing, of another kind, or holds no finite numbers."""
        if not path.is_file():
            raise UserError(f"--actions {path}: there is no such file", again(actions="dataset"))
        try:
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as file:
                    return cls(path, None, {key: _checked(path, file[key], f" ({key})") for key in file.files})
            if path.suffix == ".npy":
                return cls(path, _checked(path, np.load(path, allow_pickle=False)), {})
            if path.suffix == ".csv":
                return cls(path, _checked(path, np.loadtxt(path, delimiter=",", ndmin=2)), {})
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            # NumPy's own words for a file that is none of its arrays advise to unpickle it
            reason = error if path.suffix == ".csv" else "it is damaged, or no NumPy file of plain numbers"
            raise UserError(f"--actions {path} cannot be read: {reason}") from error
        raise UserError(f"--actions {path} is not a {KINDS} file")

    def require(self, spec: ActionSpec) -> None:
        """
        Raises:
            UserError: rows of another width than ``spec``, that of the model.
        """
        for key, rows in {"": self.rows, **self.by_episode}.items():
            if rows is not None and rows.shape[1] != spec.dim:
                where = f"{self.path} ({key})" if key else f"{self.path}"
                raise UserError(
                    f"--actions {where} has rows of {rows.shape[1]} numbers; the model takes {spec.dim}: "
                    f"{', '.join(spec.names[:8])}{', …' if spec.dim > 8 else ''}"
                )

    def of(self, episode: str, frames: int, stride: int) -> np.ndarray:
        """The first ``frames * stride`` rows as ``[n, r, A]``; a file with more is used up to there.

        Raises:
            UserError: too few rows, or an episode that the file does not know.
        """
        rows = self.rows if self.rows is not None else self.by_episode.get(episode)
        if rows is None:
            raise UserError(f"{self.path} has no actions for episode {episode}")
        needed = frames * stride
        if len(rows) < needed:
            raise UserError(
                f"{self.path} has {len(rows)} action rows; {frames} frames at {stride} rows per frame need {needed}",
                again(frames=max(1, len(rows) // stride)),
            )
        return rows[:needed].reshape(frames, stride, rows.shape[1])


def _checked(path: Path, rows: np.ndarray, where: str = "") -> np.ndarray:
    """Rows ``[rows, A]``; ``where`` names the array in a file of several."""
    if rows.ndim == 3:
        rows = rows.reshape(-1, rows.shape[-1])
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.number):
        shape = " x ".join(map(str, rows.shape)) or "a single value"
        raise UserError(f"--actions {path}{where} must hold numbers [rows, A]; it holds {rows.dtype}, {shape}")
    wrong = np.argwhere(~np.isfinite(rows))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise UserError(
            f"--actions {path}{where} must hold finite numbers; that in row {row}, column {column} (from 0) is "
            f"{rows[row, column]}{f', and {len(wrong) - 1} others are not finite either' if len(wrong) > 1 else ''}"
        )
    return rows.astype(np.float32) if rows.dtype == np.float64 else rows
