"""The text encoder of models that do not read: every prompt is the same single token of zeros."""

from __future__ import annotations

import numpy as np


class NoText:
    """Stands where a Wan has UMT5."""

    def __init__(self, dim: int = 16) -> None:
        self.dim = dim

    def encode(self, text: str) -> np.ndarray:
        """float32 ``[1, D]``, whatever the text."""
        return np.zeros((1, self.dim), np.float32)
