"""What future tokens can be guessed without looking: the copy baseline, with a probability for each guess.

Adjacent frames often share a token, so a raw accuracy says little; the copy baseline's cross-entropy is what a world head must
beat. Everything is counted on training episodes and never across an episode's end. Accuracies: ``data.token_statistics``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SMOOTHING = 1.0
"""Added to every count, so that no token has probability 0."""


@dataclass(frozen=True)
class Copy:
    """Says: with probability ``stay[k]`` the token of k + 1 frames later is today's, else one by its frequency.

    Attributes:
        stay: ``[K]``, in (0, 1). frequency: ``[N]``, sums to 1, all above 0.
    """

    stay: np.ndarray
    frequency: np.ndarray

    @classmethod
    def fit(cls, episodes: Iterable[np.ndarray], codes: int, future: int) -> Copy:
        """
        Args:
            episodes: int ``[T, P]`` each, training ones. codes: N. future: K.
        """
        frequency = np.full(codes, SMOOTHING)
        same, pairs = np.full(future, SMOOTHING), np.full(future, 2 * SMOOTHING)
        for rows in episodes:
            tokens = np.asarray(rows, np.int64)
            frequency += np.bincount(tokens.ravel(), minlength=codes)
            for k in range(1, min(future, len(tokens) - 1) + 1):
                equal = tokens[:-k] == tokens[k:]
                same[k - 1] += equal.sum()
                pairs[k - 1] += equal.size
        return cls(same / pairs, frequency / frequency.sum())

    def bits(self, now: np.ndarray, then: np.ndarray) -> np.ndarray:
        """Cross-entropy of each guess: ``-log2 p(then | now)``.

        Args:
            now: int ``[…, P]``. then: int ``[…, K, P]``, the tokens 1 … K frames later.

        Returns:
            float64 ``[…, K, P]``.
        """
        current = now[..., None, :]
        stay = self.stay[:, None]
        other = (1 - stay) * self.frequency[then] / (1 - self.frequency[current])
        return -np.log2(np.where(then == current, stay, other))
