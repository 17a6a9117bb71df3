"""The released geometry: every name and shape of thuml/RLVR-World's own modules, and the numbers they compute.

``tests/golden/tokenizers.json`` was written by running those modules (revision e1b8b6f, diffusers 0.42, CPU) on the weights
and pictures that the functions below make: digests of names and shapes at full size, tokens and pixels at a small one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from worldsim import tokenizers
from worldsim.core.errors import UserError
from worldsim.tokenizers.fsq_compressive import FSQCompressive
from worldsim.tokenizers.fsq_compressive import Spec as CompressiveSpec
from worldsim.tokenizers.fsq_frame import FSQFrame
from worldsim.tokenizers.fsq_frame import Spec as FrameSpec

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "tokenizers.json").read_text())
SMALL = {
    "fsq-frame": lambda: FSQFrame(FrameSpec(channels=(32, 32, 64), resnets=1, latent=8, levels=(8, 6, 5)), 32, 40),
    "fsq-compressive": lambda: FSQCompressive(CompressiveSpec(channels=(32, 64), resnets=1, latent=8), 64, 80),
}
RELEASED = {
    "fsq-frame": {"_class_name": "CNNFSQModel256", "fsq_levels": 8, "block_out_channels": [32, 32, 64], "resolution": 32},
    "fsq-compressive": {
        "_class_name": "VQModel", "vq_fsq_levels": 12, "dyn_fsq_levels": 12, "block_out_channels": [32, 64],
        "resolution": 64, "max_att_resolution": 32, "context_length": 1, "act_fn": "silu", "norm_type": "group",
    },
}  # fmt: skip


@torch.no_grad()
def fill(module: torch.nn.Module) -> None:
    """Weights that follow from their names alone."""
    for name, tensor in sorted(module.state_dict().items()):
        draw = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
        noise = torch.rand(tensor.shape, generator=draw) - 0.5
        if tensor.ndim == 1 and name.endswith("weight"):
            tensor.copy_(1 + 0.4 * noise)
        else:
            wide = tensor.ndim > 1 and "pos_emb" not in name
            tensor.copy_(noise * (2.0 / tensor[0].numel() ** 0.5 if wide else 0.4))


def pictures(height: int, width: int, count: int) -> torch.Tensor:
    """uint8 ``[count, H, W, 3]``."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    films = [
        [0.5 + 0.4 * torch.sin(6 * x + 1.7 * k + c) * torch.cos(5 * y - 0.9 * k * c + 0.3) for c in range(3)]
        for k in range(count)
    ]
    return (255 * torch.stack([torch.stack(film, -1) for film in films])).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("name", "plugin", "millions"), [("fsq-frame", FSQFrame, 104.4), ("fsq-compressive", FSQCompressive, 129.4)]
)
def test_names_shapes_and_parameter_counts(name, plugin, millions):
    with torch.device("meta"):
        module = plugin()
    shapes = [[key, list(tensor.shape)] for key, tensor in sorted(module.state_dict().items())]
    assert len(shapes) == GOLDEN[name]["keys"]
    assert hashlib.sha256(json.dumps(shapes).encode()).hexdigest() == GOLDEN[name]["digest"]
    parameters = sum(p.numel() for p in module.parameters())
    assert parameters == GOLDEN[name]["parameters"]
    assert parameters / 1e6 == pytest.approx(millions, abs=0.06)  # 418 and 518 MB in fp32, as released


def test_token_arithmetic():
    with torch.device("meta"):
        frame, compressive = FSQFrame(), FSQCompressive()
    assert (frame.codes, frame.frame_tokens, frame.context_tokens, frame.grid) == (4375, 320, 0, (16, 20))
    assert (compressive.codes, compressive.frame_tokens, compressive.context_tokens) == (4375, 80, 1280)
    assert (len(compressive.cond_encoder.cross_att_blocks), len(compressive.cond_decoder.cross_att_blocks)) == (2, 1)
    assert compressive.cond_encoder.places == (2, 3)
    assert sum(p.numel() for p in compressive.cond_decoder.parameters()) / 1e6 == pytest.approx(39.7, abs=0.06)


@pytest.fixture(params=list(SMALL))
def released(request, tmp_path):
    """A folder as the reference saves it: its config's words, its weights' names."""
    name = request.param
    module = SMALL[name]()
    fill(module)
    common = {"latent_channels": 8, "layers_per_block": 1, "norm_num_groups": 32}
    (tmp_path / "config.json").write_text(json.dumps({**RELEASED[name], **common}))
    torch.save(module.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    return name, tmp_path


def test_released_weights_give_the_references_numbers(released):
    name, folder = released
    module, golden = tokenizers.load(folder), GOLDEN[name]
    assert f"{len(module.state_dict())} weights fit, none is missing or unknown" in module.imported
    if name == "fsq-frame":
        frames = pictures(32, 40, 2)[None]
        tokens, context = module.encode(frames), torch.empty(1, 0)
    else:
        film = pictures(64, 80, 3)[None]
        frames, context = film[:, 1:], module.encode_context(film[:, 0])
        assert context.flatten().tolist() == golden["context"]
        tokens = module.encode(frames, film[:, 0])
    assert tokens.flatten().tolist() == golden["tokens"]
    assert len(tokens.unique()) > 10
    step = 97 if name == "fsq-frame" else 311
    pixels = module.pixels(module.open(context), tokens).flatten()[::step]
    assert torch.allclose(pixels, torch.tensor(golden["pixels"]).clamp(0, 1), atol=2e-5)
    assert pixels.std() > 0.1


def test_a_released_folder_that_does_not_fit_is_one_sentence(released):
    folder = released[1]
    path = folder / "diffusion_pytorch_model.bin"
    whole = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in whole.items() if k != "quant_linear.weight"}, path)
    with pytest.raises(UserError, match=r"1 missing: quant_linear\.weight"):
        tokenizers.load(folder)
    torch.save({("old." + k if k == "quant_linear.bias" else k): v for k, v in whole.items()}, path)
    with pytest.raises(UserError, match=r"1 missing: quant_linear\.bias; 1 unknown: old\.quant_linear\.bias"):
        tokenizers.load(folder)
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.bin holds no weights"):
        tokenizers.load(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"has a config\.json but no weights"):
        tokenizers.load(folder)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, "norm_type": "spatial"}))
    with pytest.raises(UserError, match="norm_type = 'spatial' is not supported"):
        tokenizers.load(folder)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in about.items() if k != "block_out_channels"}))
    with pytest.raises(UserError, match="lacks the key 'block_out_channels'"):
        tokenizers.load(folder)
    levels = {k: 11 for k in about if k.endswith("fsq_levels")}
    (folder / "config.json").write_text(json.dumps({**about, **levels}))
    with pytest.raises(UserError, match=r"no table of levels for 2\^11 codes"):
        tokenizers.load(folder)
