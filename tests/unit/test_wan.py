"""Wan: zero-init changes nothing, actions reach their latents, history is clean and out of the loss, rollouts are exact."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from worldsim.core.errors import UserError
from worldsim.encoders.wan_vae import WanVAE
from worldsim.nn.flow import TimeSampling
from worldsim.train import checkpoint
from worldsim.world_models import _wan_routes
from worldsim.world_models._wan_geometries import GEOMETRIES, read_geometry, resolve
from worldsim.world_models._wan_net import NetSpec, WanNet
from worldsim.world_models._wan_rollout import Imagination
from worldsim.world_models._wan_training import FlowLoss
from worldsim.world_models.wan import Wan, check_size

TWINS = ["tiny-t2v", "tiny-i2v", "tiny-ti2v"]
ROUTES = list(_wan_routes.ROUTES)
B, K, R, A = 2, 2, 2, 3
H, W = 4, 6  # latent grid


def make_net(twin: str, route: str = "patch-add", rank: int = 2, moved: bool = False) -> WanNet:
    base = resolve(twin)
    net = WanNet(base.transformer(), base.geometry, NetSpec(A, R, route, hidden=16, rank=rank, alpha=4.0))
    if moved:
        torch.manual_seed(5)
        for parameter in net.trained().values():
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def make_inputs(net: WanNet, history: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    geometry = net.geometry
    out = {
        "x": torch.randn(B, geometry.channels, 1 + K, H, W),
        "time": torch.tensor([250.0, 901.5]),
        "text": torch.randn(B, geometry.text_tokens, 32),
        "actions": torch.randn(B, 4 * K, R, A),
        "history": torch.full((B,), history),
    }
    if geometry.family == "i2v":
        out |= {"condition": torch.randn(B, 16, 1 + K, H, W), "image": torch.randn(B, 5, 4)}
    return out


def batch_of(net: WanNet, count: int = 3, histories: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    z = net.geometry.channels
    out = {
        "latents": torch.randn(count, z, 1 + K, H, W),
        "actions": torch.randn(count, 4 * K, R, A),
        "text": torch.randn(count, net.geometry.text_tokens, 32),
    }
    if net.geometry.family == "i2v":
        out |= {"condition": torch.randn(count, histories, 16, 1 + K, H, W), "image": torch.randn(count, 5, 4)}
    return out


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
def test_given_latents_are_clean_and_out_of_the_loss(twin, monkeypatch):
    """The net sees history clean (or, for I2V, noised beside a clean condition), and its error there does not count."""
    net = make_net(twin)
    loss = FlowLoss(net, (2,), TimeSampling("uniform"), dropout=0.0)
    batch, seen = batch_of(net, histories=1), {}

    def fake(x, time, text, actions, history, dropped, condition, image):
        seen.update(x=x, time=time, history=history, condition=condition)
        wrong = torch.zeros_like(x)
        wrong[:, :, :2] = 1e6
        return wrong

    monkeypatch.setattr(net, "forward", fake)
    torch.manual_seed(0)
    value = loss(**batch)
    assert value < 1e3
    assert seen["history"].tolist() == [2, 2, 2]
    clean_now = torch.equal(seen["x"][:, :, :2], batch["latents"][:, :, :2])
    assert clean_now == (twin != "tiny-i2v")
    if twin == "tiny-i2v":
        assert torch.equal(seen["condition"], batch["condition"][:, 0])


def test_the_loss_knows_the_answer(monkeypatch):
    """A net that returned the true velocity would have no loss; one that returns zero has about 2 (two unit normals)."""
    net = make_net("tiny-ti2v")
    batch = batch_of(net, count=64)
    loss = FlowLoss(net, (1,), TimeSampling("uniform"), dropout=0.0)

    def oracle(x, time, text, actions, history, dropped, condition, image):
        sigma = (time / 1000).view(-1, 1, 1, 1, 1)
        return (x - batch["latents"]) / sigma  # x = x0 + sigma (noise - x0)

    monkeypatch.setattr(net, "forward", oracle)
    assert loss(**batch).item() < 1e-4
    monkeypatch.setattr(net, "forward", lambda x, *rest: torch.zeros_like(x))
    assert loss(**batch).item() == pytest.approx(2.0, rel=0.05)


def test_time_is_fp32_per_latent_with_history_at_zero(monkeypatch):
    net = make_net("tiny-ti2v")
    seen = {}
    forward = WanTransformer3DModel.forward

    def spy(self, *args, **kwargs):
        seen.update(kwargs)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(WanTransformer3DModel, "forward", spy)
    with torch.no_grad():
        net(**make_inputs(net, history=2))
    assert seen["timestep"].dtype == torch.float32
    assert seen["timestep"].tolist() == [[0, 0, 250.0], [0, 0, 901.5]]


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


@pytest.mark.parametrize("twin", TWINS)
def test_exactly_n_frames_for_n_actions(twin):
    model = Wan.tiny(twin)
    context = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 64, 3), np.uint8)
    for n in (1, 8, 9, 13):
        actions = np.zeros((2, n, 1, 2), np.float32)
        video = model.rollout(context, actions, num_samples=2)
        assert video.shape == (2, 2, n, 32, 64, 3)
        assert video.dtype == np.uint8


def test_rollouts_are_decided_by_seed_sample_and_chunk():
    model = Wan.tiny()
    rng = np.random.default_rng(0)
    context = rng.integers(0, 256, (2, 5, 32, 64, 3), np.uint8)
    actions = rng.normal(size=(2, 11, 1, 2)).astype(np.float32)
    video = model.rollout(context, actions, num_samples=2, seeds=[7, 8])
    again = Wan.tiny().rollout(context, actions, num_samples=2, seeds=[7, 8])
    assert np.array_equal(video, again)
    swapped = model.rollout(context[::-1], actions[::-1], num_samples=3, seeds=[8, 7])[::-1]
    assert np.abs(swapped[:, :2].astype(int) - video).max() <= 1
    assert not np.array_equal(video[:, 0], video[:, 1])
    assert not np.array_equal(model.rollout(context, actions, seeds=[9, 8])[0], video[0, :1])
    # a longer wish does not change the chunks before its last one
    longer = np.concatenate([actions, actions], axis=1)
    more = model.rollout(context, longer, num_samples=2, seeds=[7, 8])
    assert np.array_equal(more[:, :, :8], video[:, :, :8])


def test_later_chunks_see_what_earlier_ones_imagined(monkeypatch):
    model = Wan.tiny()
    encoded = []
    encode = WanVAE.encode
    monkeypatch.setattr(
        WanVAE, "encode", lambda self, frames, pad_to=0: encoded.append(frames) or encode(self, frames, pad_to)
    )
    context = np.random.default_rng(0).integers(0, 256, (1, 1, 32, 64, 3), np.uint8)
    video = model.rollout(context, np.zeros((1, 17, 1, 2), np.float32))[0]
    assert [e.shape[1] for e in encoded] == [1, 5, 5, 5]  # frames per chunk: 8, 4, 4, 4
    assert np.array_equal(encoded[0][0], context[0])
    assert np.array_equal(encoded[1], video[:, 3:8])
    assert np.array_equal(encoded[3], video[:, 11:16])


@pytest.fixture
def chunks(monkeypatch):
    """What each chunk of a rollout was handed: (actions, noise), in order."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    chunk = Imagination._chunk

    def spy(self, past, actions, history, noise, text):
        seen.append((actions.clone(), noise.clone()))
        return chunk(self, past, actions, history, noise, text)

    monkeypatch.setattr(Imagination, "_chunk", spy)
    return seen


def roll(model: Wan, actions: np.ndarray, seeds: list[tuple[int, int]]) -> np.ndarray:
    """One rollout per (seed, sample), past the normalisation of actions."""
    context = np.zeros((len(seeds), 1, 32, 64, 3), np.uint8)
    rows = np.repeat(actions[None].astype(np.float32), len(seeds), 0)
    text = torch.zeros(len(seeds), model.net.geometry.text_tokens, 32)
    return Imagination(model.net, model.card, model.vae, lambda: None, model.device).roll(context, rows, seeds, text)


def test_each_chunk_takes_the_actions_of_its_own_frames(chunks):
    """Row t of a chunk drives its frame t + 1: rows of given frames are filled, the last row is repeated to the end."""
    values = np.arange(15)
    roll(Wan.tiny(), np.stack([values, 100 + values], -1)[:, None], [(0, 0)])
    assert [actions.shape for actions, _ in chunks] == [(1, 8, 1, 2)] * 3
    assert [actions[0, :, 0, 0].tolist() for actions, _ in chunks] == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [8, 8, 8, 8, 8, 9, 10, 11],
        [12, 12, 12, 12, 12, 13, 14, 14],
    ]
    assert all(torch.equal(actions[..., 1], actions[..., 0] + 100) for actions, _ in chunks)


def test_noise_is_new_in_every_chunk_and_follows_from_seed_sample_and_chunk(chunks):
    model, actions, clips = Wan.tiny(), np.zeros((10, 1, 2)), [(7, 0), (7, 1), (8, 0)]
    roll(model, actions, clips)
    noise = {(*clip, at): drawn[i] for at, (_, drawn) in enumerate(chunks) for i, clip in enumerate(clips)}
    assert len(noise) == 6
    for one, other in combinations(noise, 2):
        correlation = torch.corrcoef(torch.stack([noise[one].flatten(), noise[other].flatten()]))[0, 1]
        assert abs(correlation) < 0.3, (one, other)
    chunks.clear()
    roll(model, actions, [(8, 0), (7, 1)])  # in other company
    for at, (_, drawn) in enumerate(chunks):
        assert torch.equal(drawn[0], noise[8, 0, at])
        assert torch.equal(drawn[1], noise[7, 1, at])


@pytest.mark.parametrize(("guidance", "forwards"), [(1.0, 1), (2.0, 2)])
def test_one_forward_per_step_when_guidance_is_off(guidance, forwards):
    model = Wan.tiny()
    model.set_sampling(steps=3, guidance=guidance)
    calls = []
    model.net.register_forward_hook(lambda *a: calls.append(1))
    model.rollout(np.zeros((1, 1, 32, 64, 3), np.uint8), np.zeros((1, 4, 1, 2), np.float32))
    assert len(calls) == 3 * forwards


def test_guidance_moves_the_video():
    model, context = Wan.tiny(), np.zeros((1, 1, 32, 64, 3), np.uint8)
    actions = np.ones((1, 4, 1, 2), np.float32)
    plain = model.rollout(context, actions)
    model.set_sampling(guidance=6.0)
    assert not np.array_equal(model.rollout(context, actions), plain)
    model.set_sampling(guidance=1.0)
    assert np.array_equal(model.rollout(context, actions), plain)


@pytest.mark.parametrize("frames", [1, 4, 5, 10])
def test_reconstruct_is_the_codec_alone(frames):
    truth = np.random.default_rng(0).integers(0, 256, (2, frames, 32, 64, 3), np.uint8)
    out = Wan.tiny().reconstruct(truth)
    assert out.shape == truth.shape
    whole = -(-(frames - 1) // 4) * 4 + 1
    vae = resolve("tiny-ti2v").vae("cpu")
    padded = np.concatenate([truth, np.repeat(truth[:, -1:], whole - frames, 1)], 1)[:1]
    assert np.array_equal(out[:1], vae.decode(vae.encode(padded))[:, :frames])


def test_instructions_change_the_video():
    model, context = Wan.tiny(), np.zeros((1, 1, 32, 64, 3), np.uint8)
    actions = np.ones((1, 4, 1, 2), np.float32)
    silent = model.rollout(context, actions)
    model.set_instructions([None])
    assert np.array_equal(model.rollout(context, actions), silent)
    model.set_instructions(["push the block"])
    assert not np.array_equal(model.rollout(context, actions), silent)
    model.set_instructions(["a", "b"])
    with pytest.raises(UserError, match="2 instructions were set for 1"):
        model.rollout(context, actions)


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
