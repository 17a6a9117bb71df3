"""What every registered tokenizer must do, on its tiny twin: ids in range, frames in order, groups without copies.

World tokens (``kmeans``) have no decoder; what they must do stands in ``test_world_tokens.py``.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from tests import painted
from worldsim import tokenizers
from worldsim.core import registry
from worldsim.core.errors import UserError

NAMES = [name for name in registry.names("tokenizers") if hasattr(registry.get("tokenizers", name), "pixels")]


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request: pytest.FixtureRequest):
    return registry.get("tokenizers", request.param).tiny()


def clips(tokenizer, batch: int = 2, frames: int = 3) -> torch.Tensor:
    """Painted frames, all different, uint8 ``[B, T, H, W, 3]``."""
    size = (tokenizer.height, tokenizer.width)
    films = [[painted.paint(37 * t, *size, episode=e) for t in range(frames)] for e in range(batch)]
    return torch.from_numpy(np.array(films))


def opened(tokenizer, frames: torch.Tensor):
    """Tokens and features of clips seen from their first frame."""
    context = frames[:, 0]
    return tokenizer.encode(frames, context), tokenizer.open(tokenizer.encode_context(context))


def test_shapes_ranges_and_sizes(tokenizer) -> None:
    frames = clips(tokenizer)
    context, tokens = tokenizer.encode_context(frames[:, 0]), tokenizer.encode(frames, frames[:, 0])
    assert context.shape == (2, tokenizer.context_tokens)
    assert tokens.shape == (2, 3, tokenizer.frame_tokens)
    assert tokenizer.frame_tokens == tokenizer.grid[0] * tokenizer.grid[1]
    for ids in (context, tokens):
        assert ids.dtype == torch.int64
        assert ids.numel() == 0 or (ids.min() >= 0 and ids.max() < tokenizer.codes)
    assert tokenizer.codes == np.prod(tokenizer.levels)
    pixels = tokenizer.pixels(tokenizer.open(context), tokens)
    assert pixels.shape == (2, 3, 3, tokenizer.height, tokenizer.width)
    assert pixels.dtype == torch.float32
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_frames_keep_their_order_and_their_context(tokenizer) -> None:
    """Frame t of row b alone gives the tokens at [b, t], whatever else is in the batch."""
    frames = clips(tokenizer)
    tokens, features = opened(tokenizer, frames)
    pixels = tokenizer.pixels(features, tokens)
    for b in range(2):
        for t in range(3):
            alone = tokenizer.encode(frames[b : b + 1, t : t + 1], frames[b : b + 1, 0])
            assert torch.equal(alone[0, 0], tokens[b, t])
            seen = tokenizer.open(tokenizer.encode_context(frames[b : b + 1, 0]))
            assert torch.allclose(tokenizer.pixels(seen, alone)[0, 0], pixels[b, t], atol=1e-5)


def test_a_group_is_its_rows_decoded_one_by_one(tokenizer) -> None:
    frames = clips(tokenizer)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(tokenizer.codes, (6, 2, tokenizer.frame_tokens), generator=draw)
    features = opened(tokenizer, frames)[1]
    together = tokenizer.pixels(features.expand(3), tokens)
    assert len(features.expand(3)) == 6
    for row in range(6):
        alone = tokenizer.pixels(features[[row // 3]], tokens[row : row + 1])
        assert torch.allclose(alone[0], together[row], atol=1e-5)
    mixed = torch.tensor([1, 0, 0])
    assert torch.allclose(tokenizer.pixels(features[mixed], tokens[[4, 0, 1]]), together[[4, 0, 1]], atol=1e-5)


def test_large_groups_are_decoded_in_parts(tokenizer, monkeypatch) -> None:
    """Whatever the parts: of one picture, across contexts, of everything."""
    features = opened(tokenizer, clips(tokenizer))[1].expand(3)
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(tokenizer.codes, (6, 2, tokenizer.frame_tokens), generator=draw)
    whole = tokenizer.pixels(features, tokens)
    for pictures in (1, 5, 6):
        monkeypatch.setattr("worldsim.tokenizers._face.PIXELS_AT_ONCE", pictures * tokenizer.height * tokenizer.width)
        assert torch.allclose(tokenizer.pixels(features, tokens), whole, atol=1e-5)


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path) -> None:
    tokenizer.about = {"camera": "top"}
    tokenizer.save(tmp_path / "run" / "checkpoint")
    frames = clips(tokenizer)
    tokens, features = opened(tokenizer, frames)
    copy = tokenizers.load(tmp_path / "run")
    assert copy.card() == tokenizer.card()
    assert copy.card()["tokenizer"] == copy.name
    assert not any(p.requires_grad for p in copy.parameters())
    assert not copy.training
    again, seen = opened(copy, frames)
    assert torch.equal(again, tokens)
    assert torch.equal(copy.pixels(seen, again), tokenizer.pixels(features, tokens))


def test_a_token_models_own_copy_is_found(tokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path / "run" / "checkpoint" / "tokenizer")
    card = {"world_model": "token-ar", "tokenizer": {"name": tokenizer.name, "digest": "…"}}
    (tmp_path / "run" / "checkpoint" / "card.json").write_text(json.dumps(card))
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint", tmp_path / "run" / "checkpoint" / "tokenizer"):
        assert tokenizers.load(folder).codes == tokenizer.codes
    shutil.rmtree(tmp_path / "run" / "checkpoint" / "tokenizer")
    with pytest.raises(UserError, match="holds no trained tokenizer"):
        tokenizers.load(tmp_path / "run")


def test_a_weight_that_does_not_fit_is_named(tokenizer, tmp_path) -> None:
    from worldsim.train.checkpoint import read_weights, write_weights

    tokenizer.save(tmp_path)
    whole = read_weights(tmp_path / "model.safetensors")
    name = "decoder.conv_out.weight"
    cases = {
        "1 missing: decoder.conv_out.weight": {k: v for k, v in whole.items() if k != name},
        "1 unknown: decoder.conv_out.wieght": {**whole, "decoder.conv_out.wieght": whole[name].clone()},
        "decoder.conv_out.weight has shape [1]": {**whole, name: torch.zeros(1)},
    }
    for sentence, tensors in cases.items():
        write_weights(tmp_path / "model.safetensors", tensors)
        with pytest.raises(UserError) as caught:
            tokenizers.load(tmp_path)
        assert sentence in caught.value.sentence
        assert "model.safetensors" in caught.value.sentence


def test_frames_of_another_size_or_type_are_refused(tokenizer) -> None:
    frames = clips(tokenizer)
    for wrong in (frames[:, :, :-1], frames.float()):
        with pytest.raises(UserError, match=f"takes uint8 frames of {tokenizer.height}x{tokenizer.width}x3"):
            tokenizer.encode(wrong, frames[:, 0])


def test_training_is_differentiable_and_what_is_saved_decodes_the_same(tokenizer) -> None:
    """In eval mode ``forward`` decodes the very pictures that ``encode`` and ``pixels`` give."""
    frames = clips(tokenizer)
    pictures = frames.movedim(-1, 2).float() / 255
    parts, index = tokenizer(pictures[:, 0], pictures[:, 1:])
    tokens, features = opened(tokenizer, frames)
    decoded, truth, _ = parts["frame"]
    offset = 0 if "context" in parts else 1  # a per-frame tokenizer decodes the context frame among the others
    own = decoded.unflatten(0, (2, 2 + offset))[:, offset:]
    assert torch.allclose(own.clamp(0, 1), tokenizer.pixels(features, tokens[:, 1:]), atol=1e-5)
    assert torch.equal(truth.unflatten(0, (2, 2 + offset))[:, offset:], pictures[:, 1:])
    assert index.max() < tokenizer.codes
    copy = registry.get("tokenizers", tokenizer.name).tiny().train().requires_grad_(True)
    parts, _ = copy(pictures[:, 0], pictures[:, 1:])
    sum((made - real).abs().mean() for made, real, _ in parts.values()).backward()
    missing = [name for name, p in copy.named_parameters() if p.grad is None]
    assert not missing


def test_reconstruction_is_encode_and_decode(tokenizer) -> None:
    frames = clips(tokenizer)
    out = tokenizer.reconstruct(frames.numpy())
    tokens, features = opened(tokenizer, frames)
    assert out.dtype == np.uint8
    assert out.shape == frames.shape
    expected = (tokenizer.pixels(features, tokens) * 255).round().movedim(2, -1).numpy().astype(np.uint8)
    assert np.array_equal(out, expected)


def test_no_tokenizer_there_is_one_sentence(tmp_path) -> None:
    with pytest.raises(UserError, match="holds no trained tokenizer"):
        tokenizers.load(tmp_path)
