"""From a dataset's training episodes to a codebook: a sample of embeddings, k-means, and the frame nearest to each centroid."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim import tokenizers
from worldsim.commands._tokens import digest_of
from worldsim.core.errors import UserError
from worldsim.core.protocols import EpisodeSource
from worldsim.data.cameras import camera_stream
from worldsim.data.columns import Column
from worldsim.data.transforms import Cover
from worldsim.encoders import _vision
from worldsim.encoders._codes import Codes
from worldsim.encoders._vision import FROM_TOKENIZER
from worldsim.tokenizers import kmeans
from worldsim.tokenizers._embedder import Embedder
from worldsim.tokenizers.kmeans import ROWS_AT_ONCE, KMeans

FRAMES_PER_CODE = 4
"""Fewer training embeddings than this per code, and codes stand for single frames."""
PICTURE = 64
"""Longest side of a code's picture, px."""


def open_embedder(vision_model: str, pooling: str, normalise: bool, device: str) -> Embedder:
    """A backbone by what a user types, ``tokenizer:RUN`` included.

    Raises:
        UserError: there is none, or it has no such pooling.
    """
    if vision_model.startswith(FROM_TOKENIZER):
        run = vision_model.removeprefix(FROM_TOKENIZER)
        module = tokenizers.load(run, device)
        embedder = Embedder(Codes(module, run, digest_of(module)), pooling, normalise)
    else:
        embedder = Embedder(_vision.load(vision_model, device), pooling, normalise)
    _ = embedder.shape
    return embedder


def choose_size(wanted: int, rows: int) -> int:
    """How many codes: at most a quarter of the training embeddings.

    Raises:
        UserError: there are too few for two codes.
    """
    most = rows // FRAMES_PER_CODE
    if most < 2:
        raise UserError(
            f"{rows} embeddings of training frames are too few for a codebook; two codes want {2 * FRAMES_PER_CODE}",
            "worldsim doctor DATA",
        )
    return min(wanted, most)


def sample(embeddings: Column, train: list[str], most: int, seed: int) -> np.ndarray:
    """At most ``most`` rows of the training embeddings, drawn evenly without replacement, in order: float16 ``[n, d]``."""
    lengths = {name: int(np.prod(embeddings.load(name).shape[:2])) for name in train}
    total = sum(lengths.values())
    drawn: np.ndarray = np.arange(total)
    if total > most:
        drawn = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    parts, first = [], 0
    for name, count in lengths.items():
        mine = drawn[(drawn >= first) & (drawn < first + count)] - first
        rows = embeddings.load(name)
        parts.append(rows.reshape(count, rows.shape[-1])[mine])
        first += count
    return np.concatenate(parts)


def fit(
    embeddings: Column, train: list[str], embedder: Embedder, wanted: int, most: int, seed: int
) -> tuple[KMeans, dict[str, Any]]:
    """The codebook, without pictures yet, and what its card says of how it was fitted."""
    rows = sample(embeddings, train, most, seed)
    centroids = kmeans.fit(rows, choose_size(wanted, len(rows)), seed)
    about = {"seed": seed, "sample": len(rows), "fitted_on": train}
    return KMeans(embedder, centroids).to(embedder.encoder.device).eval().requires_grad_(False), about


def nearest(tokenizer: KMeans, embeddings: Column, train: list[str]) -> list[tuple[str, int, int]]:
    """The training embedding nearest to each centroid: (episode, frame, position); the first of equals."""
    best = torch.full((tokenizer.codes,), torch.inf, dtype=torch.float64)
    where: list[tuple[str, int, int]] = [(train[0], 0, 0)] * tokenizer.codes
    book = tokenizer.centroids.cpu().double()
    for name in train:
        rows = torch.from_numpy(np.array(embeddings.load(name)))
        for at, part in _chunks(rows.flatten(0, 1)):
            gap, row = _squared(part.double(), book).min(0)
            for code in torch.nonzero(gap < best).flatten().tolist():
                frame, position = divmod(at + int(row[code]), rows.shape[1])
                where[code] = (name, frame, position)
            best = torch.minimum(best, gap)
    return where


def pictures(tokenizer: KMeans, embeddings: Column, train: list[str], source: EpisodeSource, camera: str) -> np.ndarray:
    """What each code looks like, uint8 ``[N, h, w, 3]``: the nearest training frame, or the cell of it that was embedded."""
    found = nearest(tokenizer, embeddings, train)
    wanted: dict[str, set[int]] = defaultdict(set)
    for name, frame, _ in found:
        wanted[name].add(frame)
    at = {name: index for index, name in enumerate(source.ids())}
    frames: dict[tuple[str, int], np.ndarray] = {}
    small: Cover | None = None
    for name, chosen in wanted.items():
        rows = sorted(chosen)
        shown = camera_stream(source.episode(at[name]), camera).rows(rows)
        if tokenizer.frame_tokens > 1:
            shown = tokenizer.encoder.view(shown).movedim(1, -1).numpy()
        elif small is None:
            small = _fitting(*shown.shape[1:3])
        if small is not None:
            shown = small.forward(shown)
        frames |= {(name, row): picture for row, picture in zip(rows, shown)}
    return np.stack([_cell(frames[name, frame], tokenizer.grid, position) for name, frame, position in found])


def _cell(frame: np.ndarray, grid: tuple[int, int], position: int) -> np.ndarray:
    """The part of a picture that a position of the grid covers; all of it for a grid of one."""
    if grid == (1, 1):
        return frame
    row, column = divmod(position, grid[1])
    height, width = frame.shape[0] // grid[0], frame.shape[1] // grid[1]
    part = frame[row * height : (row + 1) * height, column * width : (column + 1) * width]
    return _fitting(height, width).forward(part[None])[0]


def _fitting(height: int, width: int) -> Cover:
    """The same aspect with sides of at most ``PICTURE``."""
    scale = min(1.0, PICTURE / max(height, width))
    return Cover(max(1, round(height * scale)), max(1, round(width * scale)))


def _chunks(rows: Tensor) -> list[tuple[int, Tensor]]:
    return [(at, rows[at : at + ROWS_AT_ONCE]) for at in range(0, len(rows), ROWS_AT_ONCE)]


def _squared(rows: Tensor, book: Tensor) -> Tensor:
    """Squared distances ``[n, N]``, float64."""
    return rows.square().sum(1, keepdim=True) - 2 * rows @ book.T + book.square().sum(1)
