"""Learned perceptual distance, per frame. Needs weights that this project may not bundle."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from worldsim.core.registry import register
from worldsim.metrics import WEIGHTS_VARIABLE, check_clip, weights_folder

CARD = {
    "title": "LPIPS v0.1 on AlexNet features",
    "source": "Zhang et al. 2018, arXiv:1801.03924; heads from pip package lpips (BSD-2), backbone from torchvision",
    "size": "233 MB (AlexNet), 6 KB (heads)",
    "license": "Apache-2.0 (code); weights BSD-2 and BSD-3",
    "unit": "1",
    "better": "lower",
    "scope": "frame",
}
BACKBONE, HEADS = "alexnet-owt-7be5be79.pth", "lpips_alex.pth"
TAPS = (1, 4, 7, 9, 11)
WIDTHS = (64, 192, 384, 256, 256)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
BATCH = 16


@register("metrics")
class Lpips:
    """``lpips(prediction, truth, given) -> float64 [n]``: 0 for equal frames, about 1 for unrelated ones.

    Frames are compared at their own size, pixels scaled to [-1, 1]; frames must be at least 32 pixels on each side.
    """

    def __init__(self, backbone: nn.Module | None = None, heads: list[torch.Tensor] | None = None) -> None:
        self.backbone = (backbone or _load_backbone()).eval().requires_grad_(False)
        self.heads = heads or _load_heads()

    @staticmethod
    def unavailable() -> str | None:
        """The line that says which file is missing and how to get it; None when both are there."""
        if _backbone_path() is None:
            get = "python -c 'import torchvision; torchvision.models.alexnet(weights=\"DEFAULT\")'"
            return f"lpips needs {BACKBONE}: {get}, or put it into {weights_folder()} (${WEIGHTS_VARIABLE})"
        if _heads_path() is None:
            return f"lpips needs its calibrated heads: pip install lpips, or put {HEADS} into {weights_folder()}"
        return None

    @classmethod
    def tiny(cls, seed: int = 0) -> Lpips:
        """Random weights of the real shapes: shows that the arithmetic runs, never a score."""
        from torchvision.models import alexnet

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            backbone = alexnet(weights=None).features
            heads = [torch.rand(width) for width in WIDTHS]
        return cls(backbone, heads)

    @torch.inference_mode()
    def __call__(self, prediction: np.ndarray, truth: np.ndarray, given: np.ndarray | None = None) -> np.ndarray:
        check_clip(prediction, truth)
        out = []
        for at in range(0, len(truth), BATCH):
            mine, theirs = (self.maps(_signed(frames[at : at + BATCH])) for frames in (prediction, truth))
            out.append(self.distance(mine, theirs))
        return torch.cat(out).double().numpy()

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """float32 ``[B, 3, H, W]`` in -1..1, on the backbone's device -> five maps ``[B, C, h, w]`` of unit length over
        channels."""
        x = (x - x.new_tensor(SHIFT)[:, None, None]) / x.new_tensor(SCALE)[:, None, None]
        maps = []
        for number, layer in enumerate([*self.backbone.children()][: TAPS[-1] + 1]):
            x = layer(x.clone())  # some layers work in place, and a tapped map must survive them
            if number in TAPS:
                maps.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return maps

    def distance(self, a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        """LPIPS of B pairs of frames from their :meth:`maps`, ``[B]``."""
        heads = [head.to(x.device)[:, None, None] for head, x in zip(self.heads, a)]
        layers = [((x - y).square() * head).sum(1).mean((1, 2)) for x, y, head in zip(a, b, heads)]
        return torch.stack(layers).sum(0)


def _signed(frames: np.ndarray) -> torch.Tensor:
    """uint8 ``[B, H, W, 3]`` -> float32 ``[B, 3, H, W]`` in -1..1."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def _backbone_path() -> Path | None:
    places = [weights_folder() / BACKBONE, Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE]
    return next((path for path in places if path.exists()), None)


def _heads_path() -> Path | None:
    places = [weights_folder() / HEADS]
    spec = importlib.util.find_spec("lpips")
    if spec is not None and spec.origin:
        places.append(Path(spec.origin).parent / "weights" / "v0.1" / "alex.pth")
    return next((path for path in places if path.exists()), None)


def _load_backbone() -> nn.Module:
    from torchvision.models import alexnet

    net = alexnet(weights=None)
    net.load_state_dict(_read(_backbone_path()))
    return net.features


def _load_heads() -> list[torch.Tensor]:
    state = _read(_heads_path())
    return [state[f"lin{k}.model.1.weight"].flatten() for k in range(len(WIDTHS))]


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        raise FileNotFoundError("ask Lpips.unavailable() first")
    return torch.load(path, map_location="cpu", weights_only=True)
