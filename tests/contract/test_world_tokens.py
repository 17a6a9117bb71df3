"""What a tokenizer without a decoder must do: one code per place of each frame, the same from a folder, by the same face."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import painted
from worldsim import tokenizers
from worldsim.core import registry
from worldsim.core.errors import UserError

NAMES = [name for name in registry.names("tokenizers") if not hasattr(registry.get("tokenizers", name), "pixels")]


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request: pytest.FixtureRequest):
    return registry.get("tokenizers", request.param).tiny()


def frames(count: int = 6) -> np.ndarray:
    return np.stack([painted.paint(37 * t, 48, 96) for t in range(count)])


def test_there_is_one() -> None:
    assert "kmeans" in NAMES


def test_shapes_ranges_and_order(tokenizer) -> None:
    codes = tokenizer.encode(frames())
    assert codes.shape == (6, tokenizer.frame_tokens)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < tokenizer.codes
    assert tokenizer.context_tokens == 0
    assert tokenizer.frame_tokens == tokenizer.grid[0] * tokenizer.grid[1]
    for t, frame in enumerate(frames()):
        assert torch.equal(tokenizer.encode(frame[None])[0], codes[t])
    clips = torch.from_numpy(frames()).unflatten(0, (2, 3))
    assert torch.equal(tokenizer.encode(clips), codes.unflatten(0, (2, 3)))


def test_codes_follow_from_the_embeddings_as_they_are_stored(tokenizer) -> None:
    embeddings = tokenizer.embed(frames())
    assert embeddings.dtype == torch.float16
    assert embeddings.shape == (6, tokenizer.frame_tokens, tokenizer.dim)
    assert torch.equal(tokenizer.assign(embeddings.cpu().numpy()), tokenizer.encode(frames()))
    assert torch.equal(tokenizer.assign(embeddings.float()), tokenizer.encode(frames()))


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path) -> None:
    tokenizer.about = {"camera": "top"}
    tokenizer.save(tmp_path / "run" / "checkpoint")
    copy = tokenizers.load(tmp_path / "run")
    assert copy.card() == tokenizer.card()
    assert copy.card()["tokenizer"] == copy.name
    assert copy.codebook_hash == tokenizer.codebook_hash
    assert torch.equal(copy.encode(frames()), tokenizer.encode(frames()))
    assert torch.equal(copy.pictures, tokenizer.pictures)
    assert not copy.training
    assert not any(p.requires_grad for p in copy.parameters())
    inside = tmp_path / "policy" / "checkpoint" / "tokenizer"  # a policy's own copy of it
    tokenizer.save(inside)
    assert tokenizers.load(tmp_path / "policy").codebook_hash == tokenizer.codebook_hash


def test_a_world_model_is_not_trained_on_what_cannot_be_drawn(tokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path)
    with pytest.raises(UserError, match="which no decoder can draw"):
        tokenizers.require_decoder(tokenizers.find(tmp_path))
    drawn = registry.get("tokenizers", "fsq-frame").tiny()
    drawn.save(tmp_path / "other")
    tokenizers.require_decoder(tmp_path / "other")
