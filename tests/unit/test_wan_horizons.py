"""Any horizon, on every family: exactly n frames for n actions, each from its own action, whatever the chunks are."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldsim.encoders.wan_vae import PACK
from worldsim.world_models._wan_card import Sampling
from worldsim.world_models._wan_rollout import Imagination
from worldsim.world_models.wan import Wan

TWINS = ("tiny-ti2v", "tiny-i2v", "tiny-t2v")


class Ruler:
    """Codec and net in one: a frame is the number of the action that led to it, so every slip of rows or frames shows.

    ``encode`` notes the given frame's number; ``velocity`` answers so that sampling ends at the numbers of the chunk's
    actions; ``decode`` paints them.
    """

    def __init__(self, family: str, frames: int, channels: int) -> None:
        self.frames, self.channels, self.calls = frames, channels, 0
        self.geometry = SimpleNamespace(channels=channels, stride=16, family=family, sees_image=False)

    def encode(self, video: np.ndarray, pad_to: int = 0) -> np.ndarray:
        numbers = video[:, :, 0, 0, 0].astype(np.float32) + 256.0 * video[:, :, 0, 0, 1]
        latents = 1 + (max(pad_to, video.shape[1]) - 1) // PACK
        out = np.zeros((len(video), self.channels, latents, 1, 1), np.float32)
        out[:, 0, 0] = numbers[:, 0, None, None]
        for k in range(1, 1 + (video.shape[1] - 1) // PACK):
            out[:, :PACK, k, 0, 0] = numbers[:, 1 + PACK * (k - 1) : 1 + PACK * k]
        return out

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        codes = latents[:, :, :, 0, 0].numpy()
        numbers = np.concatenate([codes[:, 0, :1], codes[:, :PACK, 1:].transpose(0, 2, 1).reshape(len(codes), -1)], axis=1)
        numbers = np.rint(numbers).astype(int)[:, :, None, None]
        return np.stack([numbers % 256, numbers // 256, 0 * numbers], axis=-1).astype(np.uint8).repeat(16, 2).repeat(16, 3)

    def __call__(self, x, time, text, actions, history, dropped=None, **extra) -> torch.Tensor:
        """The velocity that leads from ``x`` at its time straight to the actions' numbers."""
        self.calls += 1
        target = torch.zeros_like(x)
        target[:, :PACK, 1:, 0, 0] = actions[..., -1, 0].reshape(len(x), -1, PACK).transpose(1, 2) + 1
        return (x - target) / (time.float() / 1000).view(-1, 1, 1, 1, 1)


def imagination(twin: str, frames: int, histories: tuple[int, ...], steps: int) -> tuple[Imagination, Ruler]:
    wan = Wan.tiny(twin)
    ruler = Ruler(wan.net.geometry.family, frames, 16)
    sampling = Sampling(steps=steps, guidance=1.0, shift=3.0)
    card = replace(wan.card, frames=frames, histories=histories, height=16, width=16, sampling=sampling)
    return Imagination(ruler, card, ruler, lambda: None, torch.device("cpu")), ruler


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(("frames", "histories"), [(5, (1,)), (9, (1, 2)), (13, (1, 3)), (17, (1, 2, 4))])
def test_every_horizon_up_to_forty(twin: str, frames: int, histories: tuple[int, ...]) -> None:
    """For n = 1 … 40: n frames, frame k painted with action k's number; one forward per step and chunk."""
    roller, ruler = imagination(twin, frames, histories, steps=2)
    for n in range(1, 41):
        ruler.calls = 0
        rows = np.stack([np.arange(n), 300 + np.arange(n)]).astype(np.float32)[:, :, None, None]
        context = np.zeros((2, 1, 16, 16, 3), np.uint8)
        video = roller.roll(context, rows, [(0, 0), (1, 0)], torch.zeros(2, 1, 8))
        assert video.shape == (2, n, 16, 16, 3)
        numbers = video[:, :, 0, 0, 0].astype(int) + 256 * video[:, :, 0, 0, 1].astype(int)
        assert numbers.tolist() == [list(range(1, n + 1)), list(range(301, 301 + n))], n
        assert ruler.calls == 2 * chunks(n, frames, histories), n


def chunks(n: int, frames: int, histories: tuple[int, ...]) -> int:
    """How many chunks n new frames take: each keeps as many given latents as it was trained with and has seen."""
    seen, count = 1, 0
    while n > 0:
        given = max(1 + PACK * (m - 1) for m in histories if 1 + PACK * (m - 1) <= seen)
        n, seen, count = n - (frames - given), seen + frames - given, count + 1
    return count


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("n", [3, 15])
def test_odd_horizons_through_the_real_classes(twin: str, n: int) -> None:
    """1 + n frames with the given one; steps x chunks forwards of the real transformer."""
    model, calls = Wan.tiny(twin), []
    model.net.transformer.register_forward_hook(lambda *_: calls.append(1))
    rng = np.random.default_rng(n)
    context = rng.integers(0, 256, (1, 1, 32, 64, 3), np.uint8)
    video = model.rollout(context, rng.normal(size=(1, n, 1, 2)).astype(np.float32), seeds=[3])
    assert video.shape == (1, 1, n, 32, 64, 3)
    assert len(calls) == model.card.sampling.steps * chunks(n, model.card.frames, model.card.histories)
