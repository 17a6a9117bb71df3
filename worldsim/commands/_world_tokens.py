"""World tokens of a dataset as columns: ``tokenize-world --tokenizer kmeans`` writes them, policies are trained on them.

Two columns, both indexed by frame: the embeddings (float16 ``[T, P, d]``), keyed by dataset, camera and backbone, so another
codebook does not encode the frames again; and the tokens (int32 ``[T, P]``), keyed by the codebook too. Row t is frame t.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from worldsim.commands._token_windows import choose_camera
from worldsim.commands._world_frames import Ahead
from worldsim.core.errors import BadEpisode
from worldsim.core.protocols import EpisodeSource
from worldsim.data import columns
from worldsim.data.cameras import split_names
from worldsim.data.columns import Column, ColumnSpec
from worldsim.tokenizers._embedder import Embedder
from worldsim.tokenizers.kmeans import KMeans

EMBEDDINGS, TOKENS = "world-embeddings", "world-tokens"


@dataclass
class WorldColumns:
    """Columns opened for reading, and the episodes that could not be read, by reason.

    Attributes:
        embeddings: float16 ``[T, P, d]`` per episode. tokens: int32 ``[T, P]`` per episode (P = 1 for pooled features).
    """

    embeddings: Column
    tokens: Column
    rejected: dict[str, str] = field(default_factory=dict)

    def __contains__(self, episode: str) -> bool:
        return episode in self.tokens and episode in self.embeddings

    def of(self, episodes: Iterable[str]) -> dict[str, np.ndarray]:
        """``{episode: int32 [T, P]}`` of those that could be read: what ``data.token_statistics`` takes."""
        return {name: self.tokens.load(name) for name in episodes if name in self}


def camera_of(source: EpisodeSource, tokenizer: KMeans, wanted: str | None, command: str) -> str:
    """The wanted camera (or stack, ``a+b``); else what the codebook was fitted on, where the dataset has it; else the first by
    name.

    Raises:
        UserError: the wanted one is not there.
    """
    fitted, known = tokenizer.about.get("camera"), source.card.camera_names
    if wanted is None and fitted and all(name in known for name in split_names(str(fitted), known)):
        return str(fitted)
    return choose_camera(source, wanted, command)


def fill(
    root: Path,
    source: EpisodeSource,
    tokenizer: KMeans,
    camera: str,
    episodes: Iterable[str],
    device: str,
    *,
    data: Path | None = None,
    batch: int = 64,
    rank: int = 0,
    world_size: int = 1,
) -> WorldColumns:
    """Encode what is missing of this rank's share. Finished episodes are kept, so a killed run continues.

    Args:
        root: where columns go, mostly the dataset itself. data: the dataset's folder; ``root`` when None.
        camera: one name, or several stacked (``a+b``). episodes: ids. batch: frames per forward pass.
    """
    wanted, dataset = list(episodes), columns.dataset_fingerprint(data or root)
    share = {"rank": rank, "world_size": world_size}
    embedded, rejected = embed(root, source, tokenizer.to(device).embedder, camera, wanted, dataset, batch=batch, **share)

    def one(episode: str) -> np.ndarray:
        if episode not in embedded:
            raise BadEpisode(episode, rejected.get(episode, "it has no embeddings"))
        return tokenizer.assign(embedded.load(episode)).numpy().astype(np.int32)

    spec = tokens_spec(tokenizer, dataset, camera)
    told = columns.ensure(root, spec, wanted, one, **share, title="world tokens", reject=lambda bad: None)
    return WorldColumns(embedded, told, rejected)


def embed(
    root: Path,
    source: EpisodeSource,
    embedder: Embedder,
    camera: str,
    episodes: Iterable[str],
    dataset: str,
    *,
    batch: int = 64,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[Column, dict[str, str]]:
    """The column of embeddings, made whole for this rank's share, and why episodes are missing in it.

    Args:
        embedder: on its device. dataset: the dataset's fingerprint. The rest is as in :func:`fill`.
    """
    spec, rejected = embeddings_spec(embedder, dataset, camera), dict[str, str]()
    wanted = sorted(set(episodes))
    todo = columns.missing(root, spec, wanted[rank::world_size])

    def reject(bad: BadEpisode) -> None:
        rejected[bad.episode] = bad.reason

    with Ahead(source, camera, todo, embedder.view, batch) as frames:

        def one(episode: str) -> np.ndarray:
            parts = [embedder.of_view(part).cpu() for part in frames.batches(episode)]
            rows, grid_columns, width = embedder.shape
            empty = torch.empty(0, rows * grid_columns, width, dtype=torch.float16)
            return torch.cat([empty, *parts]).numpy()

        share = {"rank": rank, "world_size": world_size}
        column = columns.ensure(root, spec, wanted, one, **share, title="embed frames", reject=reject)
    return column, rejected


def embeddings_spec(embedder: Embedder, dataset: str, camera: str) -> ColumnSpec:
    """What a column of embeddings is keyed by: not by where the backbone's weights lie."""
    params = {**embedder.params(), "camera": camera}
    return ColumnSpec(EMBEDDINGS, embedder.encoder.name, "frame", params, {"dataset": dataset})


def tokens_spec(tokenizer: KMeans, dataset: str, camera: str) -> ColumnSpec:
    """What a column of tokens is keyed by."""
    params = {"camera": camera, "codes": tokenizer.codes, "frame_tokens": tokenizer.frame_tokens}
    inputs = {"dataset": dataset, "codebook": tokenizer.codebook_hash}
    return ColumnSpec(TOKENS, tokenizer.name, "frame", params, inputs)


def missing(root: Path, tokenizer: KMeans, camera: str, episodes: Iterable[str], data: Path | None = None) -> list[str]:
    """Episodes that :func:`fill` would still have to encode or assign."""
    spec = tokens_spec(tokenizer, columns.dataset_fingerprint(data or root), camera)
    return columns.missing(root, spec, episodes)


def train_command(data: str | None, run: str | Path | None, columns_folder: str | None) -> list[object]:
    """What to type to train the policy that reads these tokens."""
    elsewhere = ["--columns", columns_folder] if columns_folder else []
    return ["worldsim", "train", "--config", "world_modality_c", data or "DATA", "--tokenizer", run, *elsewhere]
