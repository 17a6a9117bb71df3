"""Wrong world tokens for an intervention: pure functions from the true tokens of windows to corrupted ones.

A window is known by its episode and its start t; the tokens that a policy reads there are ``[C, P]``, frames t - C + 1 … t.
All corruptions draw from a seed alone, so every arm and every seed of training meets the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from worldsim.core.errors import UserError, did_you_mean

BLOCK, ZERO, ORACLE = "block", "zero", "oracle"
"""Not a replacement of tokens: attention to them is masked; their embeddings are zeroed; true futures are handed in."""
FUTURES = ("zero_future", "random_future", "shuffle_future", ORACLE)
"""Of arms whose actions attend to a future, predicted (C_pred) or true (C_oracle)."""
REPLACING = ("random", "stale", "other_episode", "nearest_wrong", "shuffle")
GRADED = "graded"
KNOWN = (*REPLACING, GRADED, BLOCK, ZERO, *FUTURES)
ABOUT = {
    "random": "i.i.d. uniform ids",
    "stale": "the tokens of some frames earlier",
    "other_episode": "another episode's tokens at the same phase",
    "nearest_wrong": "the nearest other centroid",
    "shuffle": "the tokens of another window, drawn without replacement",
    GRADED: "the centroid at a given rank of distance: 0 the nearest other one, 1 the farthest",
    BLOCK: "attention to the world input is masked",
    ZERO: "the embedding of the world input is zeroed",
    "zero_future": "the future that the actions attend to is zeroed",
    "random_future": "i.i.d. uniform ids as the future",
    "shuffle_future": "the true future tokens of another window",
    ORACLE: "the true future tokens instead of the predicted ones",
}


@dataclass(frozen=True)
class Windows:
    """Where windows lie.

    Attributes:
        tokens: one int array ``[T, P]`` per episode, in the order that ``episode`` counts.
        episode, start: ``[W]`` int: which episode, and t, the last frame that a policy has seen.
        context: C, frames of history.
    """

    tokens: Sequence[np.ndarray]
    episode: np.ndarray
    start: np.ndarray
    context: int

    def at(self, episode: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Tokens ``[W, C, P]`` of the C frames up to ``last``; frames before an episode's first are its first."""
        frames = np.maximum(last[:, None] + np.arange(1 - self.context, 1), 0)
        return np.stack([np.asarray(self.tokens[e])[rows] for e, rows in zip(episode, frames)]).astype(np.int64)

    def current(self) -> np.ndarray:
        """The true tokens, ``[W, C, P]``."""
        return self.at(self.episode, self.start)


def corrupted(name: str, windows: Windows, centroids: np.ndarray, seed: int = 0, *, delay: int = 8) -> np.ndarray:
    """Tokens to read instead of the true ones, int64 ``[W, C, P]``.

    Args:
        name: of :data:`REPLACING`, or ``graded:0.25`` (see :data:`ABOUT`).
        centroids: float ``[N, d]``. delay: frames by which ``stale`` ones are late.

    Raises:
        UserError: an unknown name, or no other episode to take tokens from.
    """
    rng = np.random.default_rng(seed)
    true = windows.current()
    match name.partition(":")[0]:
        case "random":
            return rng.integers(0, len(centroids), true.shape)
        case "stale":
            return windows.at(windows.episode, windows.start - delay)
        case "other_episode":
            return _other_episode(windows, rng)
        case "shuffle":
            return true[rng.permutation(len(true))]
        case "nearest_wrong":
            return ranked(centroids, 0.0)[true]
        case "graded":
            return ranked(centroids, float(name.partition(":")[2]))[true]
    raise UserError(f"there is no corruption '{name}'{did_you_mean(name, KNOWN)}")


def futures(name: str, windows: Windows, future: int, codes: int, seed: int = 0) -> np.ndarray:
    """Tokens to take for the next K frames, int64 ``[W, K, P]``: the true ones (``oracle``), those of another window
    (``shuffle_future``) or random ones."""
    ahead = windows.start[:, None] + np.arange(1, future + 1)
    true = np.stack([np.asarray(windows.tokens[e])[rows] for e, rows in zip(windows.episode, ahead)]).astype(np.int64)
    rng = np.random.default_rng(seed)
    if name == "shuffle_future":
        return true[rng.permutation(len(true))]
    return rng.integers(0, codes, true.shape) if name == "random_future" else true


def _other_episode(windows: Windows, rng: np.random.Generator) -> np.ndarray:
    """Every episode borrows from the next one of a random cycle, so none keeps its own, at t / (T - 1) of its length."""
    count = len(windows.tokens)
    if count < 2:
        raise UserError("tokens of another episode need at least two held-out episodes", None)
    order = rng.permutation(count)
    lender = np.empty(count, np.int64)
    lender[order] = np.roll(order, -1)
    lengths = np.array([len(rows) for rows in windows.tokens])
    phase = windows.start / np.maximum(lengths[windows.episode] - 1, 1)
    other = lender[windows.episode]
    return windows.at(other, np.rint(phase * (lengths[other] - 1)).astype(np.int64))


def ranked(centroids: np.ndarray, share: float) -> np.ndarray:
    """For each code the one that stands at ``share`` of the way from the nearest other code (0) to the farthest (1), ``[N]``."""
    distances = squared_distances(centroids)
    np.fill_diagonal(distances, -1.0)  # itself first, whatever the rounding
    order = np.argsort(distances, axis=1, kind="stable")[:, 1:]
    if not order.shape[1]:
        raise UserError("a codebook of one code has no wrong code", "worldsim tokenize-world DATA --tokenizer kmeans")
    return order[:, round(share * (order.shape[1] - 1))]


def moved(centroids: np.ndarray, true: np.ndarray, wrong: np.ndarray) -> float:
    """How far the wrong tokens lie from the true ones: the mean Euclidean distance of their centroids."""
    gaps = np.sqrt(squared_distances(centroids))
    np.fill_diagonal(gaps, 0.0)
    return float(gaps[true, wrong].mean())


def squared_distances(centroids: np.ndarray) -> np.ndarray:
    """``[N, N]`` in float64, by the expansion ``|x|^2 - 2 x c + |c|^2``, never below 0."""
    rows = np.asarray(centroids, np.float64)
    squares = (rows**2).sum(axis=1)
    return np.maximum(squares[:, None] - 2 * rows @ rows.T + squares[None], 0.0)


def names(asked: Sequence[str], shares: Sequence[float]) -> list[str]:
    """``graded`` written out, one name per share; the others as they are.

    Raises:
        UserError: an unknown name.
    """
    out: list[str] = []
    for name in asked:
        if name not in KNOWN:
            raise UserError(f"there is no corruption '{name}'{did_you_mean(name, KNOWN)}")
        out += [f"{GRADED}:{share:g}" for share in shares] if name == GRADED else [name]
    return list(dict.fromkeys(out))


def about(name: str, settings: Mapping[str, object]) -> str:
    """A corruption in words."""
    head, _, share = name.partition(":")
    if head == "stale":
        return f"the tokens of {settings['delay']} frames earlier"
    return f"the centroid at {float(share):.0%} of the way from nearest to farthest" if share else ABOUT[head]
