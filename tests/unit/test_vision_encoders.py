"""Vision backbones: prepared as transformers' own processors do it, once; loaded by its own loading code; batch or single."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import BitImageProcessor, SiglipImageProcessor, VJEPA2VideoProcessor

from worldsim.core import registry
from worldsim.core.errors import UserError
from worldsim.encoders import _vision
from worldsim.encoders._codes import Codes
from worldsim.encoders._preparation import IMAGENET, Preparation

HALF = [0.5, 0.5, 0.5]
NAMES = _vision.names()


def frames(count: int = 3, height: int = 90, width: int = 120) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def processor_of(name: str, side: int):
    """The processor class of each family at a tiny size."""
    own = {"crop_size": {"height": side, "width": side}, "image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1])}
    if name == "dinov2":
        return BitImageProcessor(size={"shortest_edge": 64}, **own)
    if name == "siglip":
        return SiglipImageProcessor(size={"height": side, "width": side}, image_mean=HALF, image_std=HALF)
    return VJEPA2VideoProcessor(**own)


def through_processor(processor, pictures: np.ndarray) -> torch.Tensor:
    """Frame by frame through transformers' own path."""
    if isinstance(processor, VJEPA2VideoProcessor):
        parts = [processor(videos=[picture[None]], return_tensors="pt")["pixel_values_videos"][0] for picture in pictures]
    else:
        parts = [processor(images=picture, return_tensors="pt")["pixel_values"] for picture in pictures]
    return torch.cat(parts)


@pytest.fixture(params=["dinov2", "siglip", "vjepa2"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A folder as ``save_pretrained`` of the family's own classes leaves it."""
    twin = registry.get("encoders", request.param).tiny()
    twin.module.save_pretrained(tmp_path / "model")
    processor_of(request.param, twin.preparation.input[0]).save_pretrained(tmp_path / "model")
    return request.param, tmp_path / "model"


@pytest.mark.parametrize("size", [(90, 120), (64, 64), (50, 40)])
def test_prepared_as_the_models_own_processor_does_it(saved: tuple[str, Path], size: tuple[int, int]) -> None:
    """A batch at once equals the processor frame by frame: same size, same cut, divided by 255 once."""
    name, folder = saved
    encoder, pictures = _vision.load(str(folder)), frames(3, *size)
    mine = encoder.preparation.normalise(encoder.view(pictures))
    theirs = through_processor(processor_of(name, encoder.preparation.input[0]), pictures)
    assert mine.shape == theirs.shape
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert mine.std() > 0.2, "divided by 255 twice, all of it would lie within 0.02"


@pytest.mark.parametrize("size", [(50, 70), (90, 41), (91, 90)])
def test_frames_smaller_than_the_cut_or_odd_are_placed_as_the_processor_places_them(size: tuple[int, int]) -> None:
    processor = BitImageProcessor(do_resize=False, crop_size={"height": 64, "width": 64})
    preparation = Preparation.of_processor(processor, "x")
    pictures = frames(2, *size)
    mine = preparation.normalise(preparation.view(pictures))
    assert torch.allclose(mine, through_processor(processor, pictures), atol=1e-5)


def test_loaded_by_its_own_class_and_equal_to_it(saved: tuple[str, Path]) -> None:
    name, folder = saved
    encoder, twin = _vision.load(str(folder)), registry.get("encoders", name).tiny()
    assert encoder.name == name
    assert type(encoder.module) is type(twin.module)
    pixels = through_processor(processor_of(name, encoder.preparation.input[0]), frames())
    with torch.no_grad():
        if name == "vjepa2":
            out = twin.module(pixel_values_videos=pixels[:, None].repeat(1, 2, 1, 1, 1), skip_predictor=True)
            expected, summary = out.last_hidden_state, None
        else:
            out = twin.module(pixel_values=pixels)
            expected, summary = out.last_hidden_state[:, -16:], out.pooler_output
    found = encoder(frames())
    assert torch.allclose(found.patches, expected, atol=1e-5)
    assert (found.summary is None) == (summary is None)
    if summary is not None:
        assert torch.allclose(found.summary, summary, atol=1e-5)


def test_other_weights_in_the_same_folder_are_noticed(saved: tuple[str, Path]) -> None:
    name, folder = saved
    was = _vision.load(str(folder)).revision
    assert _vision.load(str(folder), revision=was).revision == was
    registry.get("encoders", name).tiny(seed=1).module.save_pretrained(folder)
    with pytest.raises(UserError, match="has changed: its weights are"):
        _vision.load(str(folder), revision=was)


def test_a_missing_weight_is_refused_not_drawn_at_random(saved: tuple[str, Path]) -> None:
    from worldsim.train.checkpoint import read_weights, write_weights

    _, folder = saved
    tensors = read_weights(folder / "model.safetensors")
    lost = sorted(k for k in tensors if "predictor" not in k)[-1]
    write_weights(folder / "model.safetensors", {k: v for k, v in tensors.items() if k != lost}, None)
    _restamp(folder / "model.safetensors")
    with pytest.raises(UserError, match="lacks 1 weights"):
        _vision.load(str(folder))


def _restamp(path: Path) -> None:
    """transformers wants to be told which framework a file is of."""
    from safetensors.torch import load_file, save_file

    save_file(load_file(path), path, metadata={"format": "pt"})


def test_the_picture_tower_of_a_whole_siglip(tmp_path: Path) -> None:
    """Repositories hold both towers; the picture tower is taken out of them."""
    vision = registry.get("encoders", "siglip").tiny().module.config.to_dict()
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    whole = transformers.SiglipModel(config).eval()
    whole.save_pretrained(tmp_path)
    processor_of("siglip", 64).save_pretrained(tmp_path)
    encoder = _vision.load(str(tmp_path))
    pixels = through_processor(processor_of("siglip", 64), frames())
    with torch.no_grad():
        expected = whole.vision_model(pixel_values=pixels).pooler_output
    assert encoder.name == "siglip"
    assert torch.allclose(encoder(frames()).summary, expected, atol=1e-5)


def test_any_other_vision_transformer(tmp_path: Path) -> None:
    """A class token and registers stand before the patches."""
    net = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "num_register_tokens": 3}
    config = transformers.Dinov2WithRegistersConfig(image_size=56, patch_size=14, **net)
    module = transformers.Dinov2WithRegistersModel(config).eval()
    module.save_pretrained(tmp_path)
    processor_of("dinov2", 56).save_pretrained(tmp_path)
    encoder = _vision.load(str(tmp_path))
    with torch.no_grad():
        out = module(pixel_values=through_processor(processor_of("dinov2", 56), frames())).last_hidden_state
    found = encoder(frames())
    assert encoder.name == "hf-vision"
    assert torch.allclose(found.patches, out[:, 4:], atol=1e-5)
    assert torch.allclose(found.summary, out[:, 0], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_alone_or_in_company_from_arrays_or_tensors(name: str) -> None:
    encoder, pictures = registry.get("encoders", name).tiny(), frames()
    assert set(registry.card("encoders", name)) >= {"title", "source", "size", "license", "kind"}
    for pooling in ("auto", "mean", "grid2"):
        rows, columns, width = encoder.shape(pooling)
        together = encoder.pooled(pictures, pooling)
        assert together.shape == (3, rows * columns, width)
        assert together.dtype == torch.float32
        alone = torch.cat([encoder.pooled(picture[None], pooling) for picture in pictures])
        assert torch.allclose(together, alone, atol=1e-5)
        assert torch.equal(encoder.pooled(torch.from_numpy(pictures), pooling), together)
        assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("name", NAMES)
def test_grid_positions_are_the_places_they_name(name: str) -> None:
    """grid2 is the mean of each quarter's patches, row by row; mean is that of all of them."""
    encoder = registry.get("encoders", name).tiny()
    features = encoder(frames())
    maps = features.patches.unflatten(1, encoder.grid)
    half = encoder.grid[0] // 2
    quarters = [maps[:, r * half : (r + 1) * half, c * half : (c + 1) * half].mean((1, 2)) for r in (0, 1) for c in (0, 1)]
    assert torch.allclose(encoder.pool(features, "grid2"), torch.stack(quarters, 1), atol=1e-5)
    assert torch.allclose(encoder.pool(features, "mean")[:, 0], features.patches.mean(1), atol=1e-6)


def test_random_filters_see_where_things_are() -> None:
    """The summary tells a block's place: the nearest of other frames is the one with the block nearest by."""
    from tests import moving

    encoder = _vision.load("random-conv")
    places = np.linspace(-1, 1, 9)
    rows = encoder.pooled(np.stack([moving.picture(np.array([at])) for at in places]))[:, 0]
    gaps = torch.cdist(rows, rows) + torch.eye(9) * 1e9
    assert all(abs(int(near) - k) == 1 for k, near in enumerate(gaps.argmin(1)))


def test_random_filters_give_the_same_bits_everywhere() -> None:
    """In a batch or alone, in float64 as in float32, and as on the machine where this was written."""
    encoder, pictures = _vision.load("random-conv"), frames(20)
    pictures[10:] //= 4
    view, together = encoder.view(pictures), encoder(pictures)
    alone = torch.cat([encoder(picture[None]).summary for picture in pictures])
    assert torch.equal(together.summary, alone)
    maps, summary = encoder.module.double()(view.double())
    assert torch.equal(summary, together.summary.double())
    assert torch.equal(maps.flatten(2).movedim(1, 2), together.patches.double())
    digest = hashlib.sha256(together.summary.numpy().tobytes() + together.patches.contiguous().numpy().tobytes())
    assert digest.hexdigest()[:16] == "9dc243baa09e9203"


@pytest.mark.parametrize("name", ["fsq-frame", "fsq-compressive"])
def test_our_own_tokenizers_as_backbones(name: str) -> None:
    tokenizer = registry.get("tokenizers", name).tiny()
    encoder = Codes(tokenizer, "run", "digest")
    pictures = frames(3, tokenizer.height, tokenizer.width)
    batch = torch.from_numpy(pictures)
    ids = tokenizer.encode_context(batch) if tokenizer.context_tokens else tokenizer.encode(batch[:, None])[:, 0]
    found = encoder(pictures)
    assert torch.equal(tokenizer.quantize.index_of(found.patches), ids)
    assert torch.equal(encoder.pooled(pictures)[:, 0], found.patches.flatten(1))


@pytest.mark.parametrize("wrong", [frames().astype(np.float32) / 255, frames()[0], frames().transpose(0, 3, 1, 2)])
def test_anything_but_uint8_pictures_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(UserError, match="takes uint8 frames"):
        _vision.load("random-conv")(wrong)


def test_wrong_words_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no vision model 'random-con'; did you mean 'random-conv'"):
        _vision.load("random-con")
    with pytest.raises(UserError, match="facebook/dinov2-base cannot be loaded"):
        _vision.load("facebook/dinov2-base")
    with pytest.raises(UserError, match="cannot be loaded"):
        _vision.load(str(tmp_path))
    tiny = registry.get("encoders", "vjepa2").tiny()
    with pytest.raises(UserError, match="has no summary"):
        tiny.shape("cls")
    with pytest.raises(UserError, match="finer than the 4x4 patches"):
        tiny.shape("grid5")
    with pytest.raises(UserError, match="there is no pooling 'gird2'"):
        tiny.shape("gird2")
