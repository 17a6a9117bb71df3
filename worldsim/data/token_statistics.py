"""What tokens say before any model has learned anything: how many are in use, and how far repeating them gets.

Adjacent frames repeat their tokens, so a raw accuracy means nothing without the copy and the bigram baseline beside it. All
functions take ``{episode: int [T, P]}`` and never pair frames of two episodes; the P positions of a frame are counted alike.

# source: world_modality, analyze_world_tokens: used and effective vocabulary, entropy in nats, copy and bigram baselines
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Tokens = Mapping[str, np.ndarray]


def counts(tokens: Tokens, codes: int) -> np.ndarray:
    """How often each code occurs, int64 ``[codes]``."""
    total = np.zeros(codes, np.int64)
    for rows in tokens.values():
        total += np.bincount(np.asarray(rows).reshape(-1), minlength=codes)
    return total


def entropy(frequencies: np.ndarray) -> float:
    """Of the distribution with these counts, nats: 0 for one code, ln N for N equally frequent ones; 0 without any."""
    shares = frequencies[frequencies > 0] / max(int(frequencies.sum()), 1)
    return float(-(shares * np.log(shares)).sum()) + 0.0


def effective(frequencies: np.ndarray) -> float:
    """Effective vocabulary exp(entropy): how many equally frequent codes would be as unpredictable."""
    return float(np.exp(entropy(frequencies)))


def pairs(tokens: Tokens, ahead: int) -> tuple[np.ndarray, np.ndarray]:
    """All (w_t, w_{t + ahead}) of the same position within one episode, int64 ``[n]`` each."""
    now, later = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for rows in _long_enough(tokens, ahead):
        now.append(rows[:-ahead].reshape(-1))
        later.append(rows[ahead:].reshape(-1))
    return np.concatenate(now), np.concatenate(later)


def copy_baseline(tokens: Tokens, horizon: int) -> np.ndarray:
    """P(w_t = w_{t+k}) for k = 1 … horizon, ``[horizon]``; NaN where no episode is long enough."""
    return np.array([_share(*pairs(tokens, k)) for k in range(1, horizon + 1)])


def change_points(rows: np.ndarray, ahead: int) -> np.ndarray:
    """Where w_{t + ahead} differs from w_t, bool ``[max(T - ahead, 0), P]``: what the copy baseline gets wrong."""
    rows = _two_dimensional(rows)
    return rows[ahead:] != rows[: max(len(rows) - ahead, 0)]


@dataclass(frozen=True)
class Bigram:
    """For each horizon the most frequent successor of each code, learned from training episodes; ties go to the smaller code,
    and a code that was never seen is repeated.

    Attributes:
        successor: int64 ``[horizon, codes]``.
    """

    successor: np.ndarray

    @classmethod
    def fit(cls, train: Tokens, codes: int, horizon: int) -> Bigram:
        return cls(np.stack([_successors(*pairs(train, k), codes) for k in range(1, horizon + 1)]))

    def predict(self, codes: np.ndarray, ahead: int) -> np.ndarray:
        """The code expected ``ahead`` frames after each of ``codes``, any shape."""
        return self.successor[ahead - 1][codes]

    def accuracy(self, tokens: Tokens) -> np.ndarray:
        """Share of right predictions, ``[horizon]``; NaN where no episode is long enough."""
        return np.array([self._accuracy(tokens, k, False) for k in range(1, len(self.successor) + 1)])

    def accuracy_at_changes(self, tokens: Tokens) -> np.ndarray:
        """The same where w_{t+k} differs from w_t, where copying is never right; NaN where nothing changes."""
        return np.array([self._accuracy(tokens, k, True) for k in range(1, len(self.successor) + 1)])

    def _accuracy(self, tokens: Tokens, ahead: int, changed: bool) -> float:
        now, later = pairs(tokens, ahead)
        keep = now != later if changed else np.ones(len(now), bool)
        return _share(self.predict(now[keep], ahead), later[keep])


def summary(tokens: Tokens, codes: int, horizon: int, train: Tokens | None = None) -> dict[str, Any]:
    """All of it as JSON-able numbers (None for what has no value); the bigram is fitted on ``train``, or not at all."""
    frequencies = counts(tokens, codes)
    copied = copy_baseline(tokens, horizon)
    out: dict[str, Any] = {
        "episodes": len(tokens),
        "tokens": int(frequencies.sum()),
        "codes": codes,
        "used": int((frequencies > 0).sum()),
        "entropy_nats": entropy(frequencies),
        "effective": effective(frequencies),
        "copy": _listed(copied),
        "change_rate": _listed(1 - copied),
    }
    if train:
        bigram = Bigram.fit(train, codes, horizon)
        out["bigram"] = _listed(bigram.accuracy(tokens))
        out["bigram_at_changes"] = _listed(bigram.accuracy_at_changes(tokens))
    return out


def _successors(now: np.ndarray, later: np.ndarray, codes: int) -> np.ndarray:
    """The most frequent ``later`` of each ``now``."""
    pair, times = np.unique(now * codes + later, return_counts=True)
    first, second = pair // codes, pair % codes
    order = np.lexsort((-second, times, first))  # the last of each ``first`` is the most frequent, then the smallest
    out = np.arange(codes)
    out[first[order]] = second[order]
    return out


def _long_enough(tokens: Tokens, ahead: int) -> Iterator[np.ndarray]:
    for rows in tokens.values():
        if len(rows) > ahead:
            yield _two_dimensional(rows).astype(np.int64)


def _two_dimensional(rows: np.ndarray) -> np.ndarray:
    """``[T]`` is P = 1."""
    rows = np.asarray(rows)
    return rows[:, None] if rows.ndim == 1 else rows


def _share(a: np.ndarray, b: np.ndarray) -> float:
    return float((a == b).mean()) if len(a) else float("nan")


def _listed(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else round(float(v), 6) for v in values]
