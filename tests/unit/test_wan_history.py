"""Given latents in training: noise that forgives, and I2V's mask and condition channels as diffusers makes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from worldsim.core.types import FrameStream
from worldsim.data.transforms import to_unit
from worldsim.data.windows import WindowSpec
from worldsim.nn.flow import TimeSampling
from worldsim.world_models._wan_conditioning import condition_channels, given_latents
from worldsim.world_models._wan_encode import ClipPlan, Encoders, encode_windows
from worldsim.world_models._wan_geometries import resolve
from worldsim.world_models._wan_net import NetSpec, WanNet
from worldsim.world_models._wan_training import FlowLoss

B, K, H, W = 64, 3, 2, 4
FRAMES, SIDE = 9, 32


def make_net(twin: str) -> WanNet:
    base = resolve(twin)
    return WanNet(base.transformer(), base.geometry, NetSpec(2, 1, "patch-add", hidden=8, rank=2, alpha=2.0))


def a_batch(net: WanNet, histories: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    z, text = net.geometry.channels, net.transformer.config.text_dim
    out = {
        "latents": torch.randn(B, z, 1 + K, H, W),
        "actions": torch.randn(B, 4 * K, 1, 2),
        "text": torch.zeros(B, 512, text),
    }
    if net.geometry.family == "i2v":
        clean = out["latents"][:, None].expand(-1, histories, -1, -1, -1, -1).clone()
        for m in range(histories):
            clean[:, m, :, m + 1 :] = 7.0  # what follows the given frames
        out |= {"condition": clean, "image": torch.randn(B, 5, 4)}
    return out


def watched(net: WanNet, batch: dict[str, torch.Tensor], **options) -> tuple[dict[str, torch.Tensor], float]:
    """What the net is shown in one pass of the loss, and the loss."""
    shown: dict[str, torch.Tensor] = {}

    def look(x, time, text, actions, history, dropped, condition, image):
        shown.update(x=x, time=time, history=history, condition=condition)
        return torch.zeros_like(x)

    loss = FlowLoss(net, (1, 2), TimeSampling("uniform"), dropout=0.0, **options)
    net.forward = look
    torch.manual_seed(8)
    return shown, float(loss(**batch))


@pytest.mark.parametrize("twin", ["tiny-ti2v", "tiny-t2v", "tiny-i2v"])
def test_history_noise_moves_given_latents_alone_up_to_its_size(twin):
    net = make_net(twin)
    batch, most = a_batch(net, 2), 0.2
    clean, loss = watched(net, batch)
    noisy, noisy_loss = watched(net, batch, history_noise=most)
    assert torch.equal(clean["history"], noisy["history"])
    assert torch.equal(clean["time"], noisy["time"])
    assert noisy_loss == loss  # given latents stay out of the loss, whatever is added to them
    given = given_latents(noisy["history"], 1 + K)[:, None, :, None, None]
    name = "condition" if net.geometry.family == "i2v" else "x"
    added = noisy[name] - clean[name]
    assert not added[~given.expand_as(added)].any()
    spread = torch.stack([added[b][given[b].expand_as(added[b])].std() for b in range(B)])
    assert 0 < spread.min() < 0.3 * most  # a deviation per clip, drawn from 0 …
    assert 0.8 * most < spread.max() < 1.3 * most  # … up to the most
    assert abs(float(spread.mean()) - most / 2) < 0.1 * most
    if net.geometry.family == "i2v":  # the sequence holds the same erring history, noised as all of it
        sigma = (noisy["time"] / 1000).view(-1, 1, 1, 1, 1)
        assert torch.allclose(noisy["x"] - clean["x"], (1 - sigma) * added, atol=1e-5)


@pytest.mark.parametrize("twin", ["tiny-ti2v", "tiny-i2v"])
def test_without_noise_history_is_the_truth(twin):
    net = make_net(twin)
    batch = a_batch(net, 2)
    shown, _ = watched(net, batch)
    given = given_latents(shown["history"], 1 + K)[:, None, :, None, None].expand_as(shown["x"])
    seen = shown["x"] if shown["condition"] is None else shown["condition"]
    assert torch.equal(seen[given], batch["latents"][given])
    assert not (seen[~given] == batch["latents"][~given]).any()


def clip_of_frames(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, FRAMES, SIDE, SIDE, 3), np.uint8)


def pipeline() -> tuple[WanImageToVideoPipeline, object]:
    base = resolve("tiny-i2v")
    vae = base.vae("cpu")
    pipe = WanImageToVideoPipeline(None, None, vae.module, None, None, None, base.transformer(), None)
    return pipe, vae


def test_condition_of_one_given_frame_is_that_of_diffusers():
    pipe, vae = pipeline()
    frames = clip_of_frames()
    picture = pipe.video_processor.preprocess(Image.fromarray(frames[0, 0]), SIDE, SIDE).float()
    _, theirs = pipe.prepare_latents(picture, 1, 16, SIDE, SIDE, FRAMES, torch.float32, torch.device("cpu"))
    condition = torch.from_numpy(vae.encode(frames[:, :1], pad_to=FRAMES))
    ours = condition_channels(condition, given_latents(torch.tensor([1]), condition.shape[2]))
    assert ours.shape == theirs.shape == (1, 20, 3, 4, 4)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("history", [1, 2])
def test_several_given_frames_are_in_the_condition_as_the_true_latents_and_marked(history):
    """Causal: the given part equals the clip's own latents; nothing of the frames to be imagined is in any of it."""
    _, vae = pipeline()
    frames, given = clip_of_frames(), 1 + 4 * (history - 1)
    truth = torch.from_numpy(vae.encode(frames))
    condition = torch.from_numpy(vae.encode(frames[:, :given], pad_to=FRAMES))
    assert torch.allclose(condition[:, :, :history], truth[:, :, :history], atol=1e-5)
    assert not torch.allclose(condition[:, :, history:], truth[:, :, history:], atol=1e-4)
    other = frames.copy()
    other[:, given:] = clip_of_frames(1)[:, given:]
    assert np.array_equal(vae.encode(other[:, :given], pad_to=FRAMES), condition.numpy())
    grey = np.concatenate([to_unit(frames[:, :given]), np.zeros((1, 3, FRAMES - given, SIDE, SIDE), np.float32)], 2)
    plain = vae.module.encode(torch.from_numpy(grey)).latent_dist.mode()
    assert torch.allclose(condition, plain, atol=1e-5)  # the twin's mean is 0 and its deviation 1
    channels = condition_channels(condition, given_latents(torch.tensor([history]), condition.shape[2]))
    assert channels[:, :4, :history].eq(1).all()
    assert channels[:, :4, history:].eq(0).all()
    assert torch.equal(channels[:, 4:], condition)


def test_i2v_reads_its_channels_in_wans_order_and_attends_to_the_picture(monkeypatch):
    """noise 16, mask 4, condition 16; each of them and the CLIP tokens move the velocity; one time for all latents."""
    net = make_net("tiny-i2v").eval()
    batch = a_batch(net, 1)
    shown = {}
    plain = net.transformer.forward

    def look(**inputs):
        shown.update(inputs)
        return plain(**inputs)

    monkeypatch.setattr(net.transformer, "forward", look)
    x, history = batch["latents"][:2], torch.tensor([1, 2])
    inputs = {"x": x, "time": torch.tensor([300.0, 700.0]), "text": batch["text"][:2], "actions": batch["actions"][:2]}
    inputs |= {"history": history, "condition": batch["condition"][:2, 0], "image": batch["image"][:2]}
    with torch.no_grad():
        first = net(**inputs)
        seen = shown["hidden_states"]
        assert torch.equal(seen[:, :16], x)
        assert torch.equal(
            seen[:, 16:20], given_latents(history, 1 + K)[:, None, :, None, None].expand(2, 4, 1 + K, H, W).float()
        )
        assert torch.equal(seen[:, 20:], inputs["condition"])
        assert torch.equal(shown["timestep"], inputs["time"])
        for key, other in (
            ("condition", 0.5 + inputs["condition"]),
            ("image", -inputs["image"]),
            ("history", history + 1),
        ):
            assert not torch.allclose(net(**{**inputs, key: other}), first, atol=1e-6), key


def test_the_condition_column_holds_nothing_of_frames_that_are_to_be_imagined(tmp_path):
    """Repainting what follows the given frames changes no byte of it; repainting a given frame does."""
    plan = ClipPlan("d", "cam", SIDE, SIDE, WindowSpec(FRAMES), (1, 2))
    frames, other = clip_of_frames()[0], clip_of_frames(1)[0]
    clips = {f"after-{n}": np.concatenate([frames[:n], other[n:]]) for n in (0, 1, 5, FRAMES)}
    streams = {name: lambda clip=clip: FrameStream.of(clip) for name, clip in clips.items()}
    column = encode_windows(tmp_path, Encoders(resolve("tiny-i2v"), "cpu"), plan, streams, 1)["condition"]
    rows = {name: column.load(name)[0] for name in clips}
    truth = rows[f"after-{FRAMES}"]
    for m, given in enumerate((1, 5)):
        for n in (1, 5):
            assert np.array_equal(rows[f"after-{n}"][m], truth[m]) == (n >= given)
        assert not np.array_equal(rows["after-0"][m], truth[m])
