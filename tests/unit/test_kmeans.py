"""World tokens: the nearest centroid by plain arithmetic, whatever the batch; a codebook that is refused when it has changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from worldsim import tokenizers
from worldsim.core import registry
from worldsim.core.errors import UserError
from worldsim.encoders._codes import Codes
from worldsim.encoders.random_conv import RandomConv
from worldsim.tokenizers import kmeans
from worldsim.tokenizers._embedder import Embedder
from worldsim.tokenizers.kmeans import KMeans


def noise(count: int, seed: int = 1, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def gridded(side: int = 2) -> KMeans:
    """12 codes on a grid, each with a picture of one grey."""
    embedder = Embedder(RandomConv.tiny(), f"grid{side}")
    rows = embedder(noise(12))[:, 0].float()
    greys = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 5, 3), np.uint8)
    return KMeans(embedder, rows, greys)


def test_the_code_is_the_nearest_centroid() -> None:
    """Against differences squared and summed, in float64, of the float16 numbers."""
    module = gridded()
    rows = module.embed(noise(40, 7)).numpy()
    book = module.centroids.numpy().astype(np.float64)
    plain = ((rows.astype(np.float64)[:, :, None] - book) ** 2).sum(-1).argmin(-1)
    assert np.array_equal(module.assign(rows), plain)
    assert len(np.unique(plain)) > 3


def test_many_rows_are_assigned_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    module, rows = gridded(), torch.from_numpy(np.random.default_rng(0).normal(size=(50, 4, 8)))
    whole = module.assign(rows)
    monkeypatch.setattr(kmeans, "ROWS_AT_ONCE", 7)
    assert torch.equal(module.assign(rows), whole)
    assert module.assign(rows[:0]).shape == (0, 4)


def test_a_frame_is_shown_as_the_pictures_of_its_codes() -> None:
    module = gridded()
    shown = module.picture([3, 5, 7, 11])
    assert shown.shape == (8, 10, 3)
    assert shown[0, 0, 0] == 3
    assert shown[0, 9, 0] == 5
    assert shown[7, 0, 0] == 7
    assert shown[7, 9, 0] == 11


def test_fitted_centroids_lie_in_the_clusters_and_follow_from_the_seed() -> None:
    rng = np.random.default_rng(3)
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    rows = (centres[rng.integers(0, 4, 400)] + rng.normal(0, 0.1, (400, 2))).astype(np.float16)
    found = kmeans.fit(rows, 4, seed=0)
    assert found.dtype == np.float32
    assert np.abs(found[np.lexsort(found.round().T)] - centres[np.lexsort(centres.T)]).max() < 0.1
    assert np.array_equal(kmeans.fit(rows, 4, seed=0), found)
    with pytest.raises(UserError, match="3 embeddings cannot give 4 codes"):
        kmeans.fit(rows[:3], 4, seed=0)


@pytest.mark.parametrize("name", ["fsq-frame", "fsq-compressive"])
def test_a_tokenizer_of_ours_travels_in_the_checkpoint(name: str, tmp_path: Path) -> None:
    embedder = Embedder(Codes(registry.get("tokenizers", name).tiny(), "runs/mine", "digest"))
    module = KMeans(embedder, embedder(noise(5, 2, 24))[:, 0].float())
    module.save(tmp_path / "run" / "checkpoint")
    copy = tokenizers.load(tmp_path / "run")
    assert copy.card() == module.card()
    assert torch.equal(copy.encode(noise(9, 5, 24)), module.encode(noise(9, 5, 24)))


def test_the_hash_names_centroids_and_embedding() -> None:
    module = KMeans.tiny()
    moved = KMeans(module.embedder, module.centroids + 1e-3)
    unit = KMeans(Embedder(module.encoder, normalise=True), module.centroids)
    assert len({module.codebook_hash, moved.codebook_hash, unit.codebook_hash}) == 3
    assert KMeans.tiny().codebook_hash == module.codebook_hash


def test_unit_length_is_part_of_the_embedding() -> None:
    rows = Embedder(RandomConv.tiny(), "grid2", normalise=True)(noise(3)).float()
    assert torch.allclose(rows.norm(dim=-1), torch.ones(3, 4), atol=2e-3)


def test_embeddings_too_large_for_float16_are_refused() -> None:
    encoder = RandomConv.tiny()
    encoder.module.project.weight.mul_(1e7)
    with pytest.raises(UserError, match="is not finite in float16"):
        Embedder(encoder)(noise(2))


def test_a_changed_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    module = KMeans.tiny()
    module.save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())

    def refused(changes: dict, match: str) -> None:
        (tmp_path / "card.json").write_text(json.dumps({**card, **changes}))
        with pytest.raises(UserError, match=match):
            tokenizers.load(tmp_path)

    refused({"vision": {**card["vision"], "revision": "seed 0, 000000000000"}}, "random-conv has changed")
    refused({"codebook": "000000000000"}, "is not the one that its card tells of")
    (tmp_path / "card.json").write_text(json.dumps({k: v for k, v in card.items() if k != "grid"}))
    with pytest.raises(UserError, match="it lacks 'grid'"):
        tokenizers.load(tmp_path)
