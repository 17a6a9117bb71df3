"""Small Wan nets with random weights, and inputs and batches that fit them."""

from __future__ import annotations

import torch

from worldsim.world_models import _wan_routes
from worldsim.world_models._wan_geometries import resolve
from worldsim.world_models._wan_net import NetSpec, WanNet

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
