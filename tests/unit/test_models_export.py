"""Exports are loaded by diffusers' own pipelines and converter, and imagine what the model itself does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from PIL import Image
from safetensors.torch import load_file

from tests import worldeval_ckpt
from tests.wan_nets import TWINS
from worldsim.core.errors import UserError
from worldsim.train import checkpoint
from worldsim.world_models._wan_card import WanCard
from worldsim.world_models._wan_export import LORA_FILE, Attached, export, source
from worldsim.world_models._wan_geometries import resolve
from worldsim.world_models._wan_net import NetSpec, WanNet
from worldsim.world_models.wan import Wan

FRAMES = 9


def make(twin: str, route: str = "patch-add", rank: int = 2, alpha: float = 6.0) -> Wan:
    """A model whose trained weights are far from zero, with alpha != rank."""
    tiny = Wan.tiny(twin, route)
    spec = NetSpec(action_dim=2, rows_per_frame=1, route=route, hidden=16, rank=rank, alpha=alpha)
    net = WanNet(tiny.base.transformer(), tiny.base.geometry, spec)
    torch.manual_seed(3)
    for name, parameter in net.trained().items():
        if rank or name.startswith("conditioner."):
            torch.nn.init.normal_(parameter, std=0.2)
        else:
            parameter.data += 0.05 * torch.randn_like(parameter)
    card = WanCard.from_json({**tiny.card.to_json(), "net": vars(spec)}, "test")
    return Wan(net, card, tiny.base, {}, "cpu")


def write_run(folder: Path, model: Wan) -> Path:
    tensors = {name: p.detach() for name, p in model.net.trained().items()}
    checkpoint.write_checkpoint(folder / "checkpoint", tensors, model.card.to_json(), step=1)
    return folder


def pipeline(twin: str, transformer: WanTransformer3DModel | None = None):
    """diffusers' own pipeline around the twin's parts."""
    base = resolve(twin)
    parts = {
        "tokenizer": None,
        "text_encoder": None,
        "vae": base.vae("cpu").module,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=base.geometry.shift),
        "transformer": transformer if transformer is not None else base.transformer(),
    }
    if twin == "tiny-t2v":
        pipe = WanPipeline(**parts)
    elif twin == "tiny-ti2v":
        pipe = WanImageToVideoPipeline(**parts, expand_timesteps=True)
    else:
        clip = base.image_encoder("cpu")
        pipe = WanImageToVideoPipeline(**parts, image_encoder=clip.module, image_processor=clip.processor)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def imagine(pipe, twin: str) -> np.ndarray:
    base = resolve(twin)
    text = torch.zeros(1, base.geometry.text_tokens, 32)
    text[:, :5] = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(2))
    given = {}
    if twin != "tiny-t2v":
        given["image"] = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8))
    return pipe(
        **given,
        prompt_embeds=text,
        height=32,
        width=64,
        num_frames=FRAMES,
        num_inference_steps=2,
        guidance_scale=1.0,
        max_sequence_length=text.shape[1],
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).frames


def silent(model: Wan) -> WanTransformer3DModel:
    """The model's own transformer, LoRA and all, with the conditioner off: what it adds is zero."""
    net = model.net
    net.injection.vectors = torch.zeros(1, 1 + (FRAMES - 1) // 4, net.geometry.width)
    net.spread.tokens = 1  # diffusers' pipelines spread the time themselves
    return net.transformer


@pytest.mark.filterwarnings("error:While injecting")
@pytest.mark.parametrize("to", ["diffusers", "comfyui"])
@pytest.mark.parametrize("twin", TWINS)
def test_a_pipeline_with_the_exported_lora_imagines_what_the_model_does(tmp_path, twin, to):
    """``load_lora_weights`` of either file: alpha (6) over rank (2) is kept; ComfyUI's names go through diffusers' converter."""
    model = make(twin)
    export(model.card, *[{name: p.detach() for name, p in model.net.trained().items()}], to, tmp_path)
    loaded = pipeline(twin)
    before = imagine(loaded, twin)
    if to == "diffusers":
        loaded.load_lora_weights(tmp_path)
        config = next(iter(loaded.transformer.peft_config.values()))
        assert (config.r, config.lora_alpha) == (2, 6.0)
    else:
        loaded.load_lora_weights(tmp_path, weight_name=LORA_FILE["comfyui"])
    after, ours = imagine(loaded, twin), imagine(pipeline(twin, silent(model)), twin)
    assert np.abs(after - before).max() > 0.02
    assert np.allclose(after, ours, atol=1e-4)


@torch.no_grad()
def test_a_lora_file_has_every_layer_under_its_published_name(tmp_path):
    model = make("tiny-i2v")
    tensors = {name: p.detach() for name, p in model.net.trained().items()}
    export(model.card, tensors, "comfyui", tmp_path)
    found = load_file(tmp_path / LORA_FILE["comfyui"])
    layer = r"diffusion_model\.blocks\.[01]\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.(lora_[AB]\.weight|alpha)"
    assert all(re.fullmatch(layer, name) for name in found)
    assert len(found) == 2 * 10 * 3
    assert all(tensor.item() == 6.0 for name, tensor in found.items() if name.endswith(".alpha"))
    a = found["diffusion_model.blocks.1.cross_attn.o.lora_A.weight"]
    assert torch.equal(a, tensors["transformer.blocks.1.attn2.to_out.0.lora_A.weight"])


@pytest.mark.parametrize(
    ("twin", "route"),
    [
        ("tiny-i2v", "patch-add"),
        ("tiny-i2v", "tokens"),
        ("tiny-i2v", "worldeval"),
        ("tiny-ti2v", "adaln"),
        ("tiny-t2v", "tokens"),
    ],
)
@torch.no_grad()
def test_the_readmes_lines_attach_the_conditioner(tmp_path, twin, route):
    """Its second block of code, run as it is: diffusers' transformer with LoRA and conditioner gives the net's velocity."""
    model = make(twin, route)
    export(model.card, {name: p.detach() for name, p in model.net.trained().items()}, "diffusers", tmp_path)
    pipe = pipeline(twin)
    pipe.load_lora_weights(tmp_path)
    rng = torch.Generator().manual_seed(0)
    actions = torch.randn(FRAMES - 1, 1, 2, generator=rng).numpy()
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), flags=re.S)
    names = {"pipe": pipe, "actions": actions}
    exec(blocks[1].replace("FOLDER", str(tmp_path)), names)

    geometry = model.base.geometry
    latent = torch.randn(1, geometry.channels, 3, 4, 4, generator=rng)
    text, time = torch.randn(1, geometry.text_tokens, 32, generator=rng), torch.tensor([700.0])
    more = {"condition": torch.randn(1, 16, 3, 4, 4), "image": torch.randn(1, 5, 4)} if twin == "tiny-i2v" else {}
    rows = torch.from_numpy(model.card.normalize.forward(actions))[None]
    hidden_input, tokens = latent, time
    if twin == "tiny-i2v":
        mask = torch.zeros(1, 4, 3, 4, 4)
        mask[:, :, 0] = 1
        hidden_input = torch.cat([latent, mask, more["condition"]], 1)
    else:  # a time per token, the given latent's at 0
        tokens = torch.cat([torch.zeros(1, 4), time.expand(1, 8)], 1)

    def theirs() -> torch.Tensor:
        return pipe.transformer(hidden_input, tokens, text, more.get("image"), return_dict=False)[0]

    ours = model.net(latent, time, text, rows, torch.tensor([1]), None, **more)
    assert torch.allclose(theirs(), ours, atol=1e-4)
    names["conditioner"].set(None)
    without = model.net(latent, time, text, rows, torch.tensor([1]), torch.tensor([True]), **more)
    assert torch.allclose(theirs(), without, atol=1e-4)
    assert not torch.allclose(ours, without, atol=1e-3)
    with pytest.raises(UserError, match=r"takes \[F - 1, 1, 2\]"):
        names["conditioner"].set(actions[:, 0])


def test_one_time_per_clip_refuses_the_route_that_needs_more(tmp_path):
    model = make("tiny-i2v", "adaln")
    export(model.card, {name: p.detach() for name, p in model.net.trained().items()}, "diffusers", tmp_path)
    assert "needs one per latent: it is refused there" in (tmp_path / "README.md").read_text()
    pipe = pipeline("tiny-i2v")
    Attached(pipe.transformer, tmp_path)
    with pytest.raises(UserError, match="adaln needs a time per latent"):
        imagine(pipe, "tiny-i2v")


@pytest.mark.parametrize("twin", TWINS)
def test_a_full_fine_tune_is_exported_whole(tmp_path, twin):
    model = make(twin, rank=0)
    run = write_run(tmp_path / "run", model)
    for to in ("diffusers", "comfyui"):
        export(*source(str(run)), to, tmp_path / to)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path / "diffusers", subfolder="transformer")
    state = dict(model.net.transformer.named_parameters())
    assert all(torch.equal(p, state[name]) for name, p in loaded.named_parameters())
    assert np.allclose(imagine(pipeline(twin, loaded), twin), imagine(pipeline(twin, silent(model)), twin), atol=1e-5)
    original = load_file(tmp_path / "comfyui" / "transformer_comfyui.safetensors")
    assert "head.modulation" in original  # what ComfyUI knows a Wan by
    converted = convert_wan_transformer_to_diffusers(dict(original))
    assert all(torch.equal(converted[name], value) for name, value in state.items())


def test_command_writes_the_same_bytes_and_says_what_is_wrong(worldsim, tmp_path):
    run = write_run(tmp_path / "runs" / "mine", make("tiny-i2v"))
    code, out, err = worldsim("models", "export", run, "--to", "diffusers", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["out"] == "runs/models-export/mine-diffusers"
    assert result["metrics"]["files"] == [
        LORA_FILE["diffusers"],
        "conditioner.safetensors",
        "conditioner.json",
        "README.md",
    ]
    assert (result["metrics"]["rank"], result["metrics"]["alpha"]) == (2, 6.0)
    assert worldsim("models", "export", run, "--to", "diffusers", "--out", "again")[0] == 0
    for name in result["metrics"]["files"]:
        assert (tmp_path / result["out"] / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    about = WanCard.read(tmp_path / "again" / "conditioner.json")
    assert about.normalize.dim == 2
    for words, sentence in (
        ((), "no run was named"),
        ((run, "--to", "onnx"), "'to' = 'onnx'"),
        (("nowhere",), "nowhere is no run folder"),
        (("copy",), "copy is no run folder"),
    ):
        code, _, err = worldsim("models", "export", *words)
        assert code == 1
        assert sentence in err
    (tmp_path / "other" / "checkpoint").mkdir(parents=True)
    (tmp_path / "other" / "checkpoint" / "card.json").write_text('{"world_model": "copy"}')
    code, _, err = worldsim("models", "export", "other")
    assert "only a fine-tuned Wan is exported" in err


def test_a_worldeval_checkpoint_and_a_twin_are_exported(worldsim, tmp_path):
    path = worldeval_ckpt.write_flat(tmp_path / "ep30.ckpt", worldeval_ckpt.trained(384))
    worldeval_ckpt.write_beside(path, lora_alpha=8.0)
    assert worldsim("models", "export", path, "--to", "diffusers", "--out", "out")[0] == 0
    pipe = pipeline("tiny-i2v")
    pipe.load_lora_weights(tmp_path / "out")
    assert next(iter(pipe.transformer.peft_config.values())).lora_alpha == 8.0
    assert worldsim("models", "export", "--config", "smoke")[0] == 0
