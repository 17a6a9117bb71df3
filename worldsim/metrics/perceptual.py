"""A perceptual distance that needs no download: differences of filter answers over a pyramid."""

from __future__ import annotations

import numpy as np
import torch

from worldsim.core.registry import register
from worldsim.metrics import check_clip
from worldsim.nn.perceptual import perceptual as distance

CARD = {
    "title": "Perceptual distance of fixed filters over a pyramid (no learned weights; not comparable with LPIPS)",
    "source": "worldsim",
    "size": "no weights",
    "license": "Apache-2.0",
    "unit": "1",
    "better": "lower",
    "scope": "frame",
}


@register("metrics")
def perceptual(prediction: np.ndarray, truth: np.ndarray, given: np.ndarray | None = None) -> np.ndarray:
    """``nn.perceptual`` per frame; 0 for equal frames.

    Args:
        prediction, truth: uint8 ``[n, H, W, 3]``. given: not used.

    Returns:
        float64 ``[n]``.
    """
    check_clip(prediction, truth)
    with torch.no_grad():
        return distance(_unit(prediction), _unit(truth)).double().numpy()


def _unit(frames: np.ndarray) -> torch.Tensor:
    """uint8 ``[n, H, W, 3]`` -> float32 ``[n, 3, H, W]`` in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, -3).float() / 255
