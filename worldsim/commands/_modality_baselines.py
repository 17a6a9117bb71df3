"""What future tokens can be guessed without looking: the copy baseline with a probability to each guess, and bigrams.

Adjacent frames often share a token, so a raw accuracy says little; the copy baseline's cross-entropy is what a world head must
beat. Everything is counted on training episodes and never across an episode's end.
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
        stay: ``[K]``, in (0, 1). frequency: ``[N]``, sums to 1, all above 0. successor: ``[K, N]``, the likeliest token
            k + 1 frames after each (the bigram baseline).
    """

    stay: np.ndarray
    frequency: np.ndarray
    successor: np.ndarray

    @classmethod
    def fit(cls, episodes: Iterable[np.ndarray], codes: int, future: int) -> Copy:
        """
        Args:
            episodes: int ``[T, P]`` each, training ones. codes: N. future: K.
        """
        frequency = np.full(codes, SMOOTHING)
        same, pairs = np.full(future, SMOOTHING), np.full(future, 2 * SMOOTHING)
        seen: list[list[np.ndarray]] = [[] for _ in range(future)]
        for rows in episodes:
            tokens = np.asarray(rows, np.int64)
            frequency += np.bincount(tokens.ravel(), minlength=codes)
            for k in range(1, min(future, len(tokens) - 1) + 1):
                now, then = tokens[:-k].ravel(), tokens[k:].ravel()
                same[k - 1] += (now == then).sum()
                pairs[k - 1] += len(now)
                seen[k - 1].append(now * codes + then)
        successor = np.stack([_likeliest(found, codes) for found in seen])
        return cls(same / pairs, frequency / frequency.sum(), successor)

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

    def bigram(self, now: np.ndarray) -> np.ndarray:
        """The likeliest tokens 1 … K frames after ``now`` ``[…, P]``: int ``[…, K, P]``."""
        return np.moveaxis(self.successor[:, now], 0, -2)


def _likeliest(pairs: list[np.ndarray], codes: int) -> np.ndarray:
    """``[N]``: the commonest successor of each code among pairs ``now * N + then``; a code never seen is copied."""
    out = np.arange(codes)
    found, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *pairs]), return_counts=True)
    order = np.lexsort((-found, counts))  # the commonest last, of equal ones the lowest
    out[found[order] // codes] = found[order] % codes
    return out
