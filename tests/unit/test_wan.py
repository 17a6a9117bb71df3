"""Wan: zero-init changes nothing, LoRA alone is trained, checkpoints are strict, bases are found."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from tests.wan_nets import ROUTES, TWINS, A, B, H, R, W, batch_of, make_inputs, make_net
from worldsim.core.errors import UserError
from worldsim.nn.flow import TimeSampling
from worldsim.train import checkpoint
from worldsim.world_models._wan_geometries import GEOMETRIES, read_geometry, resolve
from worldsim.world_models._wan_net import NetSpec, WanNet
from worldsim.world_models._wan_training import FlowLoss
from worldsim.world_models.wan import Wan, check_size


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("twin", TWINS)
@torch.no_grad()
def test_a_fresh_net_gives_what_its_base_gives(twin, route):
    """Zero-initialised conditioner and LoRA: the base as diffusers itself calls it, with one time per token."""
    base, net = resolve(twin).transformer(), make_net(twin, route)
    inputs = make_inputs(net, history=2)
    given = torch.tensor([True, True, False]).expand(B, 3)
    x, time = inputs["x"], inputs["time"]
    if twin == "tiny-i2v":
        mask = given.float()[:, None, :, None, None].expand(B, 4, 3, H, W)
        x = torch.cat([x, mask, inputs["condition"]], dim=1)
    else:
        per_frame = torch.where(given, torch.zeros(()), time[:, None])
        time = per_frame.repeat_interleave(H * W // 4, dim=1)
        assert time.shape == (B, 3 * H * W // 4)
    plain = base(x, time, inputs["text"], inputs.get("image"), return_dict=False)[0]
    assert plain.abs().mean() > 0.1
    assert torch.allclose(net(**inputs), plain, atol=1e-5)


def test_lora_scale_is_alpha_over_rank():
    """W + (alpha / rank) B A on a real layer of the real class."""
    net = make_net("tiny-t2v", moved=True)
    layer = net.transformer.blocks[0].attn1.to_q
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(5, 24)
    expected = layer.base_layer(x) + (4.0 / 2) * x @ a.T @ b.T
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("twin", TWINS)
def test_only_lora_and_conditioner_train_and_all_of_them(twin):
    net = make_net(twin)
    names = net.trained()
    assert all(name.startswith(("transformer.blocks.", "conditioner.")) for name in names)
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names if name.startswith("transformer."))
    kinds = {name.split(".lora_")[0].split(".", 3)[3] for name in names if "lora" in name}
    both = [f"attn{i}.{part}" for i in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")]
    assert kinds == {*both, "ffn.net.0.proj", "ffn.net.2"}
    trainable = {id(p) for p in net.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in names.values()}
    for parameter in net.trained().values():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.manual_seed(0)
    FlowLoss(net, (1, 2), TimeSampling(), dropout=0.5)(**batch_of(net, count=8)).backward()
    assert not [name for name, p in names.items() if p.grad is None or not p.grad.abs().sum() > 0]


def test_rank_zero_trains_everything():
    net = make_net("tiny-t2v", rank=0)
    whole = {f"transformer.{name}" for name, _ in resolve("tiny-t2v").transformer().named_parameters()}
    assert whole <= net.trained().keys()


@pytest.mark.parametrize("twin", TWINS)
def test_saved_and_loaded_strictly(tmp_path, twin):
    model = Wan.tiny(twin)
    tensors = {name: p.detach() for name, p in model.net.trained().items()}
    checkpoint.write_checkpoint(tmp_path / "checkpoint", tensors, model.card.to_json(), step=7)
    loaded = Wan.load(tmp_path)
    context = np.random.default_rng(0).integers(0, 256, (1, 1, 32, 64, 3), np.uint8)
    actions = np.random.default_rng(1).normal(size=(1, 3, 1, 2)).astype(np.float32)
    assert np.array_equal(loaded.rollout(context, actions), model.rollout(context, actions))
    assert loaded.card.to_json() == model.card.to_json()
    assert json.loads((tmp_path / "checkpoint" / "card.json").read_text())["world_model"] == "wan"

    path = tmp_path / "checkpoint" / "model.safetensors"
    first = min(tensors)
    checkpoint.write_weights(path, {k: v for k, v in tensors.items() if k != first})
    with pytest.raises(UserError, match=f"lacks {first}"):
        Wan.load(tmp_path)
    checkpoint.write_weights(path, {**tensors, "conditioner.extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"unknown key conditioner\.extra"):
        Wan.load(tmp_path)
    checkpoint.write_weights(path, {**tensors, first: torch.zeros(1)})
    with pytest.raises(UserError, match=f"{first} has shape"):
        Wan.load(tmp_path)
    checkpoint.write_weights(path, {**tensors, "text.unknown": torch.zeros(1)})
    with pytest.raises(UserError, match="disagree about their prompts"):
        Wan.load(tmp_path)


def test_wrong_inputs_are_one_sentence():
    model = Wan.tiny()
    context = np.zeros((1, 1, 32, 64, 3), np.uint8)
    with pytest.raises(UserError, match="the model takes uint8"):
        model.rollout(context[:, :, :16], np.zeros((1, 4, 1, 2)))
    with pytest.raises(UserError, match="1 rows of 2 numbers"):
        model.rollout(context, np.zeros((1, 4, 2, 2)))
    with pytest.raises(UserError, match="1 contexts, 2 action"):
        model.rollout(context, np.zeros((2, 4, 1, 2)))


@pytest.mark.parametrize("twin", TWINS)
def test_a_folder_in_diffusers_layout_is_a_base(tmp_path, twin):
    own = resolve(twin)
    own.transformer().save_pretrained(tmp_path / "transformer")
    own.vae("cpu").module.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text(json.dumps({"expand_timesteps": twin == "tiny-ti2v"}))
    base = resolve(str(tmp_path))
    assert (base.geometry.family, base.geometry.stride) == (own.geometry.family, own.geometry.stride)
    assert base.geometry.multiple == own.geometry.multiple
    assert base.geometry.sees_image == own.geometry.sees_image
    for a, b in zip(own.transformer().parameters(), base.transformer().parameters(), strict=True):
        assert torch.equal(a, b)
    assert resolve(str(tmp_path), base.revision).revision == base.revision
    with pytest.raises(UserError, match="another model"):
        resolve(str(tmp_path), "0123")


def test_other_weights_of_the_same_shape_are_another_revision(tmp_path):
    """Configs and sizes are equal: what was encoded with the one codec is not reused for the other."""
    own = resolve("tiny-ti2v")
    own.transformer().save_pretrained(tmp_path / "transformer")
    codec = own.vae("cpu").module
    codec.save_pretrained(tmp_path / "vae")
    before = resolve(str(tmp_path)).revision
    (tmp_path / "README.md").write_text("no part of the model")
    assert resolve(str(tmp_path)).revision == before
    with torch.no_grad():
        codec.decoder.conv_out.weight.zero_()
    codec.save_pretrained(tmp_path / "vae")
    assert resolve(str(tmp_path)).revision != before


def test_half_precision_keeps_wans_fp32_parts(tmp_path):
    """The twin and a loaded folder agree on which parameters stay in fp32."""
    own = resolve("tiny-ti2v")
    own.transformer().save_pretrained(tmp_path / "transformer")
    own.vae("cpu").module.save_pretrained(tmp_path / "vae")
    twin, loaded = own.transformer(torch.bfloat16), resolve(str(tmp_path)).transformer(torch.bfloat16)
    kinds = {name: p.dtype for name, p in twin.named_parameters()}
    assert kinds == {name: p.dtype for name, p in loaded.named_parameters()}
    assert set(kinds.values()) == {torch.bfloat16, torch.float32}
    net = WanNet(twin, own.geometry, NetSpec(A, R, "adaln", 16, 2, 2.0))
    assert {p.dtype for p in net.trained().values()} == {torch.float32}
    with torch.no_grad():
        assert net(**make_inputs(net)).dtype == torch.float32


def test_real_geometries_have_their_published_size():
    """Parameter counts of the published models, without weights."""
    published = {"wan2.1-t2v-1.3b": 1.42e9, "wan2.1-i2v-14b-480p": 16.4e9, "wan2.2-ti2v-5b": 5.0e9}
    for name, count in published.items():
        with torch.device("meta"):
            module = WanTransformer3DModel(**GEOMETRIES[name].transformer)
        assert sum(p.numel() for p in module.parameters()) == pytest.approx(count, rel=0.01)


def test_weights_are_found_in_the_hubs_cache(tmp_path, monkeypatch):
    """A published name loads what a download left, and knows its commit; nothing is contacted."""
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--Wan-AI--Wan2.2-TI2V-5B-Diffusers"
    snapshot = repository / "snapshots" / commit
    own = resolve("tiny-ti2v")
    own.transformer().save_pretrained(snapshot / "transformer")
    (snapshot / "model_index.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    base = resolve("wan2.2-ti2v-5b")
    assert base.revision == commit
    for a, b in zip(own.transformer().parameters(), base.transformer().parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(UserError, match="has no vae/"):
        base.vae("cpu")
    with pytest.raises(UserError, match="not on this machine"):
        resolve("wan2.2-ti2v-5b", "f" * 40).transformer()


@torch.no_grad()
def test_diffusers_reads_the_saved_lora(tmp_path):
    """The checkpoint's transformer keys are diffusers' own LoRA keys: its loader gives the same net."""
    base = resolve("tiny-ti2v")
    net = WanNet(base.transformer(), base.geometry, NetSpec(A, R, "patch-add", 16, rank=4, alpha=4.0)).eval()
    for name, parameter in net.trained().items():
        if name.startswith("transformer."):
            torch.nn.init.normal_(parameter, std=0.3)
    checkpoint.write_weights(tmp_path / "model.safetensors", dict(net.trained()))
    saved = checkpoint.read_weights(tmp_path / "model.safetensors")
    theirs = base.transformer()
    inputs = make_inputs(net)
    time = inputs["time"][:, None].repeat(1, 3 * H * W // 4)
    time[:, : H * W // 4] = 0
    plain = theirs(inputs["x"], time, inputs["text"], return_dict=False)[0]
    theirs.load_lora_adapter({k: v for k, v in saved.items() if k.startswith("transformer.")}, prefix="transformer")
    tuned = theirs(inputs["x"], time, inputs["text"], return_dict=False)[0]
    assert not torch.allclose(tuned, plain, atol=1e-3)
    assert torch.allclose(net(**inputs), tuned, atol=1e-4)


def test_missing_weights_end_in_a_command():
    with pytest.raises(UserError, match="not on this machine") as error:
        resolve("wan2.2-ti2v-5b").transformer()
    assert error.value.command == "worldsim models pull wan2.2-ti2v-5b"
    with pytest.raises(UserError, match=r"no Wan model 'wan2.2-ti2v-5'; did you mean 'wan2.2-ti2v-5b'"):
        resolve("wan2.2-ti2v-5")


def test_sizes_that_do_not_fit_are_refused():
    base = resolve("wan2.2-ti2v-5b")
    check_size(base, 480, 640, 49)
    with pytest.raises(UserError, match="multiples of 32; the nearest is 480x640"):
        check_size(base, 480, 650, 49)
    with pytest.raises(UserError, match="use 49 or 53"):
        check_size(base, 480, 640, 50)


def test_read_geometry_recognises_a_published_one(tmp_path):
    geometry = GEOMETRIES["wan2.2-ti2v-5b"]
    for part, config in (
        ("transformer", {"_class_name": "WanTransformer3DModel", **geometry.transformer}),
        ("vae", {"scale_factor_spatial": 16, "is_residual": True}),
    ):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    found = read_geometry(tmp_path)
    assert (found.family, found.shift, found.area, found.multiple) == ("ti2v", 5.0, 704 * 1280, 32)
