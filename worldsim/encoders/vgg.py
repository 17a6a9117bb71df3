"""LPIPS on VGG16 features as a differentiable distance, to train tokenizers by. Needs weights that this project may not bundle.

(The metric ``lpips`` is another one: AlexNet features, uint8 frames, no gradients.)
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from worldsim.core.registry import register
from worldsim.encoders import seeded

CARD = {
    "title": "LPIPS v0.1 on VGG16 features, differentiable",
    "source": "Zhang et al. 2018, arXiv:1801.03924; heads from pip package lpips (BSD-2), backbone from torchvision",
    "size": "528 MB (VGG16), 7 KB (heads)",
    "license": "Apache-2.0 (code); weights BSD-2 and BSD-3",
}
BACKBONE, HEADS = "vgg16-397923af.pth", "lpips_vgg.pth"
TAPS = (3, 8, 15, 22, 29)
"""relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SIDE = 16
"""Smallest side of a picture: four poolings must leave something."""


@register("encoders")
class Vgg:
    """``vgg(pred, truth) -> [B]``: 0 for equal pictures. Float ``[B, 3, H, W]`` in 0 … 1, fp32 inside."""

    def __init__(self, backbone: nn.Module, heads: list[Tensor]) -> None:
        self.module = nn.ModuleDict({"backbone": backbone, "heads": nn.ParameterList(heads)}).eval().requires_grad_(False)

    @staticmethod
    def unavailable() -> str | None:
        """The line that says which file is missing and how to get it; None when both are there."""
        folder = _folder()
        if _backbone() is None:
            get = "python -c 'import torchvision; torchvision.models.vgg16(weights=\"DEFAULT\")'"
            return f"LPIPS on VGG16 needs {BACKBONE}: {get}, or put it into {folder} ($WORLDSIM_WEIGHTS)"
        if _heads() is None:
            return f"LPIPS on VGG16 needs its calibrated heads: pip install lpips, or put {HEADS} into {folder}"
        return None

    @classmethod
    def create(cls, device: str = "cpu") -> Self:
        """With its weights; ask :meth:`unavailable` first."""
        from torchvision.models import vgg16

        net, heads = vgg16(weights=None), _read(_heads())
        net.load_state_dict(_read(_backbone()))
        made = cls(net.features, [heads[f"lin{k}.model.1.weight"].flatten() for k in range(len(TAPS))])
        made.module.to(device)
        return made

    @classmethod
    def tiny(cls) -> Self:
        """Random weights, narrower: shows that the arithmetic runs, never a score."""
        widths = (4, 4, 8, 8, 8)
        layers: list[nn.Module] = []
        for count, before, after in zip((2, 2, 3, 3, 3), (3, *widths), widths):
            for k in range(count):
                layers += [nn.Conv2d(before if k == 0 else after, after, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        return seeded(lambda: cls(_fresh(layers), [torch.rand(width) for width in widths]))

    def __call__(self, pred: Tensor, truth: Tensor) -> Tensor:
        with torch.autocast(pred.device.type, enabled=False):
            total = torch.zeros(len(pred), device=pred.device)
            for a, b, head in zip(self._maps(pred.float()), self._maps(truth.float()), self.module["heads"]):
                total = total + ((a - b).square() * head[:, None, None]).sum(1).mean((1, 2))
            return total

    def _maps(self, pictures: Tensor) -> list[Tensor]:
        """Five maps ``[B, C, h, w]`` of unit length over channels."""
        x = (pictures * 2 - 1 - pictures.new_tensor(SHIFT)[:, None, None]) / pictures.new_tensor(SCALE)[:, None, None]
        maps = []
        for number, layer in enumerate(list(self.module["backbone"])[: TAPS[-1] + 1]):
            x = layer(x.clone())  # some layers work in place, and a tapped map must survive them
            if number in TAPS:
                maps.append(x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt())
        return maps


def _fresh(layers: list[nn.Module]) -> nn.Module:
    """The layers with weights drawn now."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return nn.Sequential(*layers)


def _folder() -> Path:
    """Where weights are looked for: ``$WORLDSIM_WEIGHTS``, else ``weights`` in ``$WORLDSIM_HOME`` (``~/.worldsim``)."""
    home = Path(os.environ.get("WORLDSIM_HOME") or Path.home() / ".worldsim")
    return Path(os.environ.get("WORLDSIM_WEIGHTS") or home / "weights")


def _backbone() -> Path | None:
    places = [_folder() / BACKBONE, Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE]
    return next((path for path in places if path.exists()), None)


def _heads() -> Path | None:
    places = [_folder() / HEADS]
    spec = importlib.util.find_spec("lpips")
    if spec is not None and spec.origin:
        places.append(Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth")
    return next((path for path in places if path.exists()), None)


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        raise FileNotFoundError("ask Vgg.unavailable() first")
    return torch.load(path, map_location="cpu", weights_only=True)
