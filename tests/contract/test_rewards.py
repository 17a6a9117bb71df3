"""What every registered reward must do, whatever it measures, and what each of them is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from worldsim import metrics, rewards
from worldsim.core import registry
from worldsim.core.errors import UserError
from worldsim.metrics.ssim import ssim as ssim_metric

NAMES = registry.names("rewards")
P, N, F, SIZE = 2, 3, 4, 48


def scene(moving: bool = True) -> tuple[Tensor, Tensor]:
    """A textured square sliding over a smooth ground: (truth [P, F, 3, H, W], the given frame [P, 3, H, W]), in 0..1."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    ground = np.stack([90 + x, 120 + y / 2, 200 - x - y / 3]).clip(0, 255) / 255
    frames = np.repeat(ground[None, None], F + 1, axis=1).repeat(P, axis=0)
    for p in range(P):
        patch = np.random.default_rng(p).random((3, 12, 12))
        for t in range(F + 1):
            at = 2 * t if moving else 0
            frames[p, t, :, 10 + at : 22 + at, 8 + p : 20 + p] = patch
    return torch.from_numpy(frames[:, 1:]).float(), torch.from_numpy(frames[:, 0]).float()


def tokens_of(prediction: Tensor) -> Tensor:
    """Codes that are equal exactly where pictures are: what a tokenizer's decoder guarantees the other way round."""
    seen: dict[bytes, int] = {}
    rows = [seen.setdefault(frame.numpy().tobytes(), len(seen)) for frame in prediction.flatten(0, -4)]
    return torch.tensor(rows).view(prediction.shape[:-3])[..., None].repeat_interleave(5, -1)


def build(name: str):
    """The reward itself, or its twin with random weights."""
    plugin = registry.get("rewards", name)
    return plugin.tiny() if isinstance(plugin, type) else plugin


def score(name: str, frames: Tensor, truth: Tensor, last: Tensor) -> Tensor:
    """``frames`` [P, F, 3, H, W] as each sample of its group; [P, F]. The given frame's codes come along."""
    whole = torch.cat([last[:, None], frames], 1)
    tokens = tokens_of(whole)
    group = frames[:, None].expand(-1, N, *[-1] * 4).contiguous()
    found = build(name)(group, truth, tokens[:, None, 1:].expand(-1, N, -1, -1), last, tokens[:, 0])
    assert found.shape == (P, N, F)
    assert found.dtype == torch.float32
    assert (found == found[:, :1]).all(), "equal samples of a group are rewarded equally"
    return found[:, 0]


@pytest.mark.parametrize("name", NAMES)
def test_truth_scores_the_maximum_and_degenerate_rollouts_lose(name: str) -> None:
    truth, last = scene()
    best = registry.card("rewards", name)["best"]
    perfect = score(name, truth, truth, last)
    torch.testing.assert_close(perfect, torch.full_like(perfect, best), atol=2e-5, rtol=1e-5)
    frozen, grey = last[:, None].expand_as(truth), torch.full_like(truth, 0.5)
    assert (score(name, frozen, truth, last) < perfect - 1e-5).all(), "copying the last frame where the truth moves"
    assert (score(name, grey, truth, last).mean(-1) < perfect.mean(-1) - 1e-5).all(), "constant grey"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "repetition"])
def test_more_noise_is_worse_in_every_frame(name: str) -> None:
    truth, last = scene()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    little, much = ((truth + size * noise).clamp(0, 1) for size in (0.02, 0.2))
    perfect, near, far = (score(name, frames, truth, last) for frames in (truth, little, much))
    assert (perfect > near).all()
    assert (near > far).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_is_pure_and_each_sample_and_group_stands_alone(name: str) -> None:
    truth, last = scene()
    generator = torch.Generator().manual_seed(1)
    prediction = (truth[:, None] + 0.1 * torch.randn(P, N, F, 3, SIZE, SIZE, generator=generator)).clamp(0, 1)
    prediction[:, 1, 2] = prediction[:, 1, 1]  # a repetition, and equal codes to remember
    prediction[:, 2, 1] = prediction[:, 0, 3]
    tokens, reward = tokens_of(prediction), build(name)
    before = prediction.clone()
    whole = reward(prediction, truth, tokens, last)
    assert torch.equal(prediction, before)
    assert torch.equal(reward(prediction, truth, tokens, last), whole), "the same input gives the same numbers"
    alone = reward(prediction[1:, 2:], truth[1:], tokens[1:, 2:], last[1:])
    torch.testing.assert_close(alone, whole[1:, 2:], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", sorted({"mae", "mse", "psnr", "ssim"}))
def test_numbers_are_those_of_the_metric(name: str) -> None:
    """On pixels of 8 bits; psnr differs by the 1e-8 that keeps it finite."""
    truth, last = scene()
    truth = (truth * 255).round() / 255
    noise = 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    frames = ((truth + noise).clamp(0, 1) * 255).round() / 255
    found = score(name, frames, truth, last)

    def pixels(video: Tensor) -> np.ndarray:
        return (video * 255).round().byte().permute(0, 2, 3, 1).numpy()

    metric = ssim_metric if name == "ssim" else metrics.load(name)
    sign = -1 if name in ("mae", "mse") else 1
    for p in range(P):
        given = pixels(last[p : p + 1])[0]
        expected = sign * metric(pixels(frames[p]), pixels(truth[p]), given)
        np.testing.assert_allclose(found[p].numpy(), expected, rtol=1e-4)


def test_lpips_is_the_metric_and_missing_weights_are_one_line(tmp_path, monkeypatch) -> None:
    truth, last = scene()
    frames = (truth * 255).round().div(255).flip(1)
    twin = build("lpips")
    found = score("lpips", frames, truth, last)[0]
    images = [(video[0] * 255).round().byte().permute(0, 2, 3, 1).numpy() for video in (frames, truth)]
    np.testing.assert_allclose(-found.numpy(), twin.metric(*images), rtol=2e-2)
    monkeypatch.setenv("WORLDSIM_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"lpips needs alexnet-owt.*torchvision") as error:
        rewards.load("mae+lpips")
    assert "--reward mae+perceptual" in error.value.command


def test_repetition_counts_what_repeats_beyond_the_truth() -> None:
    truth, last = scene()
    tokens = torch.tensor([[3], [3], [4], [4]]).expand(P, 1, F, 1)
    given = torch.full((P, 1), 3)
    frames = truth[:, None]
    reward = build("repetition")
    assert reward(frames, truth, tokens, last, given)[0, 0].tolist() == [-1, -1, 0, -1]
    assert reward(frames, truth, tokens, last)[0, 0].tolist() == [0, -1, 0, -1]
    still, given_still = scene(moving=False)
    assert not reward(frames, still, tokens, given_still, given).any(), "a pause in the truth may be repeated"
    paused = truth.clone()
    paused[:, 1] = paused[:, 0]
    assert reward(frames, paused, tokens, last, given)[0, 0].tolist() == [-1, 0, 0, -1]


def test_weighted_sums() -> None:
    truth, last = scene()
    frames = truth[:, None].flip(2)
    tokens = torch.tensor([[3], [3], [4], [4]]).expand(P, 1, F, 1)
    reward = rewards.load("0.5*mse + repetition")
    parts = reward.parts(frames, truth, tokens, last)
    assert list(parts) == ["mse", "repetition"]
    torch.testing.assert_close(reward(frames, truth, tokens, last), 0.5 * parts["mse"] + parts["repetition"])
    assert rewards.parse("mae+lpips") == [(1.0, "mae"), (1.0, "lpips")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mea", "no reward 'mea'; known: lpips, mae, motion-mse"),
        ("mae+", "a name is missing"),
        ("", "a name is missing"),
        ("mae+0.5*", "a name is missing after '0.5*'"),
        ("mae*0.5", "the weight 'mae' is not a positive number"),
        ("-1*mae", "'-1' is not a positive number"),
        ("x*mae", "'x' is not a positive number"),
        ("mae+0.5*mae", "named twice"),
    ],
)
def test_a_wrong_sum_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("*", r"\*")):
        rewards.parse(text)


@pytest.mark.parametrize("name", NAMES)
def test_card_says_the_maximum(name: str) -> None:
    assert isinstance(registry.card("rewards", name)["best"], float)


def test_motion_mse_is_the_metric_where_the_prediction_moves_no_further_than_the_truth() -> None:
    truth, last = (part.mul(255).round() / 255 for part in scene())
    prediction = truth[:, None].clone()
    prediction[:, :, :, :, 12:16, 10:14] = 0.5  # inside what moves in every frame
    found = rewards.load("motion-mse")(prediction, truth, torch.zeros(P, 1, F, 5, dtype=torch.int64), last)
    metric = registry.get("metrics", "motion-mse")
    for p in range(P):
        pixels = [
            (part.permute(0, 2, 3, 1) * 255).round().byte().numpy() for part in (prediction[p, 0], truth[p], last[p, None])
        ]
        np.testing.assert_allclose(-found[p, 0], metric(pixels[0], pixels[1], pixels[2][0]), rtol=0.02)


def test_no_flicker_elsewhere_makes_motion_mse_better() -> None:
    """The metric's mask grows with what a prediction changes, which dilutes its error; the reward's does not."""
    truth, last = scene()
    wrong = truth[:, None].clone()
    wrong[:, :, :, :, 10:22, 8:20] = 0.5
    flicker = wrong.clone()
    flicker[..., 40:, 40:] += 0.1
    tokens = torch.zeros(P, 1, F, 5, dtype=torch.int64)
    reward = rewards.load("motion-mse")
    torch.testing.assert_close(reward(wrong, truth, tokens, last), reward(flicker, truth, tokens, last))
