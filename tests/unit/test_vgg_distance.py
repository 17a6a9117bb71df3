"""LPIPS on VGG16: taps at the right layers, the published sum, and what is said when weights are missing."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import vgg16

from worldsim.encoders import vgg
from worldsim.encoders.vgg import Vgg


def test_taps_are_the_five_activations_of_the_paper():
    with torch.device("meta"):
        features = vgg16(weights=None).features
    x, widths = torch.empty(1, 3, 32, 32, device="meta"), []
    for number, layer in enumerate(features):
        x = layer(x)
        if number in vgg.TAPS:
            assert isinstance(layer, torch.nn.ReLU)
            widths.append((x.shape[1], x.shape[2]))
    assert widths == [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)]  # relu1_2, 2_2, 3_3, 4_3, 5_3
    tiny = list(Vgg.tiny().module["backbone"])
    assert all(type(a) is type(b) for a, b in zip(tiny, features))


def test_it_is_the_published_sum():
    """Unit-length features, squared differences, weighted over channels, averaged over pixels, summed over layers."""
    distance = Vgg.tiny()
    draw = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 32, 48, generator=draw), torch.rand(2, 3, 32, 48, generator=draw)
    shift, scale = torch.tensor(vgg.SHIFT), torch.tensor(vgg.SCALE)
    x, y = (((p * 2 - 1).movedim(1, -1) - shift).div(scale).movedim(-1, 1) for p in (a, b))
    expected = torch.zeros(2)
    for number, layer in enumerate(distance.module["backbone"]):
        x, y = layer(x.clone()), layer(y.clone())
        if number in vgg.TAPS:
            head = distance.module["heads"][vgg.TAPS.index(number)]
            unit = [m / m.norm(dim=1, keepdim=True).clamp_min(1e-10) for m in (x, y)]
            expected += torch.einsum("bchw,c->bhw", (unit[0] - unit[1]) ** 2, head).mean((1, 2))
    assert torch.allclose(distance(a, b), expected, rtol=1e-3, atol=1e-6)
    assert torch.equal(distance(a, a), torch.zeros(2))


def test_gradients_reach_the_pictures_and_no_weight():
    distance = Vgg.tiny()
    x = torch.full((1, 3, 32, 32), 0.4, requires_grad=True)
    distance(x, torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in distance.module.parameters())


def test_missing_weights_are_named_with_a_way_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLDSIM_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(vgg.importlib.util, "find_spec", lambda name: None)
    assert vgg.BACKBONE in Vgg.unavailable()
    (tmp_path / vgg.BACKBONE).touch()
    assert vgg.HEADS in Vgg.unavailable()
    (tmp_path / vgg.HEADS).touch()
    assert Vgg.unavailable() is None


def test_weights_are_read_from_their_files(tmp_path, monkeypatch):
    """The names of torchvision's and of the lpips package's files, on a net too small to matter."""
    tiny = Vgg.tiny()

    class Small(torch.nn.Module):
        def __init__(self, weights=None) -> None:
            super().__init__()
            self.features = Vgg.tiny().module["backbone"]

    monkeypatch.setenv("WORLDSIM_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("torchvision.models.vgg16", Small)
    doubled = {f"features.{k}": 2 * v for k, v in tiny.module["backbone"].state_dict().items()}
    torch.save(doubled, tmp_path / vgg.BACKBONE)
    heads = {f"lin{k}.model.1.weight": head.detach()[None, :, None, None] for k, head in enumerate(tiny.module["heads"])}
    torch.save(heads, tmp_path / vgg.HEADS)
    loaded = Vgg.create()
    draw = torch.Generator().manual_seed(1)
    a, b = torch.rand(1, 3, 32, 32, generator=draw), torch.rand(1, 3, 32, 32, generator=draw)
    same = Vgg(loaded.module["backbone"], list(tiny.module["heads"]))
    assert torch.equal(loaded(a, b), same(a, b))
    assert loaded(a, b) != pytest.approx(tiny(a, b).item(), abs=1e-6)
