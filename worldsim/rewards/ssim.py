"""Structural similarity, the numbers of the metric of that name."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from worldsim.core.errors import UserError
from worldsim.core.registry import register
from worldsim.rewards._pairs import Features, compared

CARD = {
    "title": "Structural similarity (Gaussian window 11, sigma 1.5) of RGB frames",
    "source": "Wang et al. 2004, doi:10.1109/TIP.2003.819861",
    "size": "no weights",
    "license": "Apache-2.0",
    "best": 1.0,
}
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


@register("rewards")
def ssim(prediction: Tensor, truth: Tensor, tokens: Tensor, last: Tensor, given: Tensor | None = None) -> Tensor:
    """Mean structural similarity of each frame, -1 to 1 (equal), ``[P, n, F]``; the 5 outermost pixels are left out."""
    if min(truth.shape[-2:]) < WINDOW:
        raise UserError(
            f"the reward ssim needs frames of at least {WINDOW} x {WINDOW} pixels, not {tuple(truth.shape[-2:])}"
        )
    return compared(prediction, truth, tokens, _moments, _similarity)


def _moments(frames: Tensor) -> Features:
    """The frames, their local means and local variances."""
    mean = _blur(frames)
    return [frames, mean, _blur(frames * frames) - mean * mean]


def _similarity(a: Features, b: Features) -> Tensor:
    (x, mx, vx), (y, my, vy) = a, b
    both = _blur(x * y) - mx * my
    score = (2 * mx * my + C1) * (2 * both + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return score.mean((-3, -2, -1))


def _blur(frames: Tensor) -> Tensor:
    """Gaussian means of ``[B, 3, H, W]`` where the window fits, ``[B, 3, H - 10, W - 10]``."""
    reach = torch.arange(WINDOW, device=frames.device, dtype=frames.dtype) - WINDOW // 2
    weights = (-(reach**2) / (2 * SIGMA**2)).exp()
    weights = (weights / weights.sum()).expand(3, 1, 1, WINDOW)
    return conv2d(conv2d(frames, weights, groups=3), weights.transpose(2, 3), groups=3)
