"""The world-modality experiment's own files, so that its scripts find what they look for: ``cache/<dataset>/``.

``{split}_embeddings.fp16.npy`` float16 ``[T, d]``, ``{split}_world_tokens.int.npy`` int32 ``[T]`` and
``{split}_codebook_centroids.f32.npy`` float32 ``[N, d]``, row index = frame number in the whole dataset, episode after episode.
T counts every frame of the dataset in each split's files; rows of other episodes are zero, their tokens ``ABSENT``. With a grid
of P positions there is an axis more: ``[T, P, d]`` and ``[T, P]``. The codebook is one and the same for every split.

# source: world_modality, precompute_world_tokens.py (names, shapes, dtypes)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.commands._world_tokens import WorldColumns
from worldsim.core.errors import BadEpisode
from worldsim.core.files import file_digest, replacing, write_json
from worldsim.core.protocols import EpisodeSource
from worldsim.tokenizers.kmeans import KMeans

EMBEDDINGS, TOKENS, CENTROIDS = "embeddings.fp16.npy", "world_tokens.int.npy", "codebook_centroids.f32.npy"
MANIFEST = "manifest.json"
ABSENT = -1


@dataclass(frozen=True)
class Places:
    """Which rows of the whole dataset each episode has: id -> (first, one past the last)."""

    rows: dict[str, tuple[int, int]]
    total: int

    @classmethod
    def of(cls, source: EpisodeSource, known: Mapping[str, int]) -> Places:
        """In the dataset's order.

        Args:
            known: frames of episodes whose length is known already. An episode that does not even tell its length has none.
        """
        rows, at = {}, 0
        for index, name in enumerate(source.ids()):
            try:
                count = known[name] if name in known else source.episode(index).num_frames
            except BadEpisode:
                count = 0
            rows[name] = (at, at + count)
            at += count
        return cls(rows, at)


def write(
    folder: Path,
    tokenizer: KMeans,
    columns: WorldColumns,
    parts: Mapping[str, list[str]],
    places: Places,
    about: dict[str, Any],
) -> list[str]:
    """One set of files per part of the split, and ``manifest.json``; each appears whole. Returns the names.

    Args:
        parts: name of a split -> its episodes. about: what else the manifest says (dataset, camera, …).
    """
    names = []
    for part, episodes in parts.items():
        present = [name for name in episodes if name in columns]
        _write_rows(folder / f"{part}_{EMBEDDINGS}", columns.embeddings, present, places, np.float16, 0)
        _write_rows(folder / f"{part}_{TOKENS}", columns.tokens, present, places, np.int32, ABSENT)
        with replacing(folder / f"{part}_{CENTROIDS}") as temporary, temporary.open("wb") as file:
            np.save(file, tokenizer.centroids.cpu().numpy())
        names += [f"{part}_{ending}" for ending in (EMBEDDINGS, TOKENS, CENTROIDS)]
    own = {
        "total_frames": places.total,
        "splits": {part: [name for name in episodes if name in columns] for part, episodes in parts.items()},
        "rows": {name: list(span) for name, span in places.rows.items()},
        "absent_token": ABSENT,
        "codebook": {**{k: v for k, v in tokenizer.card().items() if k != "vision"}, "sha256": _sha256(folder, parts)},
        "encoder": tokenizer.card()["vision"],
        "files": names,
    }
    write_json(folder / MANIFEST, {**about, **own})
    return [*names, MANIFEST]


def _sha256(folder: Path, parts: Mapping[str, list[str]]) -> str:
    """Of the file of centroids; all splits have the same."""
    return file_digest(folder / f"{next(iter(parts))}_{CENTROIDS}")


def _write_rows(path: Path, column: Any, episodes: list[str], places: Places, dtype: Any, absent: int) -> None:
    """``[T, …]`` with each episode's rows where they belong; written through a map, so memory does not grow with T."""
    shape = column.load(episodes[0]).shape[1:] if episodes else (1,)
    squeezed = shape[1:] if shape[0] == 1 else shape
    with replacing(path) as temporary:
        out = np.lib.format.open_memmap(temporary, "w+", dtype=dtype, shape=(places.total, *squeezed))
        if absent:
            out[:] = absent
        for name in episodes:
            first, last = places.rows[name]
            out[first:last] = column.load(name).reshape(-1, *squeezed)
        out.flush()
        del out
