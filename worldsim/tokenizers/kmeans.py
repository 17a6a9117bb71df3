"""World tokens: the nearest of N k-means centroids to a frozen backbone's embedding of a frame.

One code per frame (pooled features) or per cell of a grid. There is no decoder: what a code looks like is the training frame
nearest to its centroid. The codebook is fitted on training episodes once and then reused for every split, the robot included.

# source: world_modality (vision.py, vq.py): DINOv2 embeddings, scikit-learn MiniBatchKMeans, L2
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from worldsim.core.errors import UserError
from worldsim.core.files import read_json
from worldsim.core.registry import register
from worldsim.encoders._codes import Codes
from worldsim.encoders.random_conv import RandomConv
from worldsim.tokenizers import _embedder
from worldsim.tokenizers._embedder import ENCODER, Embedder
from worldsim.train import checkpoint

CARD = {
    "title": "World tokens: k-means over a frozen vision backbone",
    "source": "world-modality experiment (README of charbelsan/world-modality-vla); scikit-learn MiniBatchKMeans",
    "size": "N centroids, beside the backbone's weights",
    "license": "Apache-2.0; the backbone has its own",
}
ROWS_AT_ONCE = 4096
"""Embeddings compared with all centroids at once, in float64."""


@register("tokenizers")
class KMeans(nn.Module):
    """``kmeans``.

    Attributes:
        codes: N. frame_tokens: P, codes per frame; grid: its rows and columns, row by row. context_tokens: 0.
        dim: d. centroids: float32 ``[N, d]``.
        embedder, encoder: frames -> embeddings, and the backbone in it.
        pictures: uint8 ``[N, h, w, 3]``, h, w <= 64: the training frame (or cell of one) nearest to each centroid.
        about: what else the card says (camera, dataset, the episodes it was fitted on, seed, …).
    """

    centroids: Tensor
    pictures: Tensor
    name = "kmeans"
    context_tokens = 0

    def __init__(
        self, embedder: Embedder, centroids: np.ndarray | Tensor, pictures: np.ndarray | Tensor | None = None
    ) -> None:
        super().__init__()
        self.embedder, self.encoder = embedder, embedder.encoder
        rows, columns, width = embedder.shape
        self.grid, self.frame_tokens, self.dim = (rows, columns), rows * columns, width
        self.register_buffer("centroids", torch.as_tensor(centroids, dtype=torch.float32))
        if self.centroids.ndim != 2 or self.centroids.shape[1] != width:
            found = "x".join(map(str, self.centroids.shape))
            raise UserError(f"a codebook of {found} does not fit embeddings of width {width}")
        self.codes = len(self.centroids)
        grey = torch.full((self.codes, 1, 1, 3), 128, dtype=torch.uint8)
        self.register_buffer("pictures", grey if pictures is None else torch.as_tensor(pictures, dtype=torch.uint8))
        self.about: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        return self.centroids.device

    @property
    def codebook_hash(self) -> str:
        """12 hex digits of centroids and of how frames are embedded; the same codes on the same frames."""
        digest = hashlib.sha256(self.embedder.fingerprint.encode())
        digest.update(self.centroids.cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def embed(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 ``[B, H, W, 3]`` of any size -> float16 ``[B, P, d]`` on the module's device."""
        return self.embedder(frames)

    @torch.no_grad()
    def assign(self, embeddings: np.ndarray | Tensor) -> Tensor:
        """``[…, d]``, rounded to float16 as they are stored -> the nearest centroid, int64 ``[…]`` on the CPU.

        float64: which one is nearest does not depend on what else is in the batch.
        """
        rows = torch.from_numpy(np.array(embeddings)) if isinstance(embeddings, np.ndarray) else embeddings
        where = torch.device("cpu") if self.device.type == "mps" else self.device
        flat = rows.to(where, torch.float16).reshape(-1, self.dim)
        book = self.centroids.to(where, torch.float64)
        length = book.square().sum(1)
        parts = [(length - 2 * part.to(torch.float64) @ book.T).argmin(1) for part in flat.split(ROWS_AT_ONCE)]
        codes = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
        return codes.cpu().reshape(rows.shape[:-1])

    def encode(self, frames: np.ndarray | Tensor, context: Any = None) -> Tensor:
        """uint8 ``[B, H, W, 3]`` -> int64 ``[B, P]``; ``[B, T, H, W, 3]`` -> ``[B, T, P]``. ``context`` is not looked at."""
        if frames.ndim == 5:
            return self.encode(frames.reshape(-1, *frames.shape[2:])).unflatten(0, tuple(frames.shape[:2]))
        return self.assign(self.embed(frames))

    def picture(self, codes: np.ndarray | Tensor) -> np.ndarray:
        """Codes ``[P]`` of one frame -> uint8 ``[H', W', 3]``: their nearest training pictures, laid out as the grid."""
        cells = self.pictures.cpu().numpy()[np.asarray(codes).reshape(self.grid)]
        return np.concatenate([np.concatenate(list(row), axis=1) for row in cells], axis=0)

    def card(self) -> dict[str, Any]:
        """All that :meth:`load` needs beside the tensors, as JSON-able values."""
        sizes = {"codes": self.codes, "frame_tokens": self.frame_tokens, "context_tokens": 0, "grid": list(self.grid)}
        own = {"tokenizer": self.name, **sizes, "dim": self.dim, "codebook": self.codebook_hash}
        return {**own, "vision": self.embedder.card(), **self.about}

    def save(self, folder: Path) -> None:
        """``card.json`` and ``model.safetensors`` (centroids, pictures), and ``encoder/`` when that is a tokenizer of ours. Other
        backbones are named in the card with their revision; their weights are not copied."""
        if isinstance(self.encoder, Codes):
            self.encoder.module.save(Path(folder) / ENCODER)
        tensors = {"centroids": self.centroids, "pictures": self.pictures}
        checkpoint.write_checkpoint(Path(folder), tensors, self.card(), 0)

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Self:
        """From a folder that :meth:`save` wrote; frozen, in eval mode.

        Raises:
            UserError: a missing, damaged or foreign file; a backbone whose weights have changed.
        """
        card = read_json(Path(folder) / checkpoint.CARD)
        known = {"tokenizer", "codes", "frame_tokens", "context_tokens", "grid", "dim", "codebook", "vision"}
        lacks = sorted(known - card.keys())
        if lacks:
            raise UserError(f"{Path(folder) / checkpoint.CARD} is no card of world tokens: it lacks '{lacks[0]}'")
        path = Path(folder) / checkpoint.WEIGHTS
        tensors = checkpoint.read_weights(path)
        if tensors.keys() != {"centroids", "pictures"}:
            raise UserError(f"{path} holds {', '.join(sorted(tensors))}, not a codebook's centroids and pictures")
        module = cls(_embedder.load(card["vision"], Path(folder), device), tensors["centroids"], tensors["pictures"])
        module.about = {key: value for key, value in card.items() if key not in known}
        if module.codebook_hash != card["codebook"]:
            raise UserError(f"the codebook in {path} is not the one that its card tells of ({card['codebook']})")
        return module.to(device).eval().requires_grad_(False)

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """8 codes around the embeddings of 8 pictures of noise by ``random-conv``, which is small as it is."""
        noise = np.random.default_rng(seed).integers(0, 256, (8, 16, 16, 3), np.uint8)
        embedder = Embedder(RandomConv())
        return cls(embedder, embedder(noise)[:, 0].float(), noise).eval().requires_grad_(False)


def fit(rows: np.ndarray, codes: int, seed: int) -> np.ndarray:
    """MiniBatchKMeans: float16 or float32 ``[n, d]`` -> centroids float32 ``[codes, d]``. The same rows and seed, the same bits.

    Raises:
        UserError: there are fewer rows than codes.
    """
    from sklearn.cluster import MiniBatchKMeans

    if len(rows) < codes:
        raise UserError(f"{len(rows)} embeddings cannot give {codes} codes", ["worldsim", "tokenize-world", "--help"])
    means = MiniBatchKMeans(codes, batch_size=ROWS_AT_ONCE, random_state=seed, n_init=1)
    return means.fit(rows.astype(np.float32)).cluster_centers_.astype(np.float32)
