"""Training and sampling agree: a twin that learned two futures of one frame imagines the one its actions name."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldsim.nn.flow import TimeSampling
from worldsim.world_models._wan_geometries import resolve
from worldsim.world_models._wan_net import NetSpec, WanNet
from worldsim.world_models._wan_rollout import Imagination
from worldsim.world_models._wan_training import FlowLoss
from worldsim.world_models.wan import Wan


class Notebook:
    """Stands for the codec: encodes to the given latent, and writes down what it is asked to decode."""

    def __init__(self, first: torch.Tensor) -> None:
        self.first, self.decoded = first, torch.empty(0)

    def encode(self, frames: np.ndarray, pad_to: int = 0) -> np.ndarray:
        latents = 1 + (max(pad_to, frames.shape[1]) - 1) // 4
        rest = torch.zeros(1, *self.first.shape[1:2], latents - 1, *self.first.shape[3:])
        return torch.cat([self.first, rest], dim=2).expand(len(frames), -1, -1, -1, -1).numpy()

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        self.decoded = latents
        return np.zeros((len(latents), 9, 32, 64, 3), np.uint8)


@pytest.mark.parametrize(("twin", "route"), [("tiny-ti2v", "patch-add"), ("tiny-i2v", "adaln"), ("tiny-ti2v", "tokens")])
def test_actions_choose_between_two_learned_futures(twin, route):
    torch.manual_seed(0)
    base = resolve(twin)
    net = WanNet(base.transformer(), base.geometry, NetSpec(2, 1, route, hidden=32, rank=0, alpha=1.0))
    stride, channels = base.geometry.stride, base.geometry.channels
    grid = (32 // stride, 64 // stride)
    futures = torch.randn(2, channels, 3, 1, 1).repeat(1, 1, 1, *grid)
    futures[1, :, 0] = futures[0, :, 0]
    actions = torch.stack([torch.ones(8, 1, 2), -torch.ones(8, 1, 2)])
    notebook = Notebook(futures[:1, :, :1])
    extra = {}
    if twin == "tiny-i2v":
        given = torch.from_numpy(notebook.encode(np.zeros((2, 1, 1, 1, 3)), pad_to=9))
        extra = {"condition": given[:, None], "image": torch.ones(2, 5, 4)}
    batch = {"latents": futures, "actions": actions, "text": torch.zeros(2, base.geometry.text_tokens, 32), **extra}
    batch = {name: value.repeat(4, *[1] * (value.ndim - 1)) for name, value in batch.items()}
    loss = FlowLoss(net, (1,), TimeSampling("uniform", shift=2.0), dropout=0.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss(**batch).backward()
        optimizer.step()

    card = Wan.tiny(twin, route).card.with_sampling(10, None)
    eye = SimpleNamespace(encode=lambda frames: np.ones((len(frames), 5, 4), np.float32))
    imagination = Imagination(net.eval(), card, notebook, lambda: eye, torch.device("cpu"))
    context = np.zeros((2, 1, 32, 64, 3), np.uint8)
    imagination.roll(context, actions.numpy(), [(0, 0), (0, 0)], batch["text"][:2])
    imagined = notebook.decoded
    assert torch.equal(imagined[:, :, 0], futures[:, :, 0])
    error = ((imagined[:, None] - futures[None]) ** 2)[:, :, :, 1:].mean(dim=(2, 3, 4, 5))
    own, other = error.diagonal(), error.flip(1).diagonal()
    # a twin of width 24 cannot carry all the noise of its tokens, so it stays rough; ignoring actions would give 1
    assert (own < 0.5 * other).all()
