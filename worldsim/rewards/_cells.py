"""Rewards that are sums over pixels, told cell by cell: what a token is credited with by the picture around it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELWISE: dict[str, Callable[[Tensor], Tensor]] = {"mse": torch.square, "mae": torch.abs}
"""Of a difference of pixels; the reward of that name is minus its mean."""


def cells(name: str, prediction: Tensor, truth: Tensor, grid: tuple[int, int]) -> Tensor:
    """Minus the mean error of each token's cell and the cells beside it, ``[P, n, F, L]``, row by row.

    A token is drawn before its neighbours and decoded together with them, so theirs is partly its doing. Cells beyond the
    border are taken for those at the border. Away from it, the mean over cells is the reward of the whole picture.

    Args:
        name: of a reward in ``PIXELWISE``. prediction: ``[P, n, F, 3, H, W]``. truth: ``[P, F, 3, H, W]``.
        grid: rows and columns of a frame's tokens; they divide H and W.
    """
    error = PIXELWISE[name](prediction - truth[:, None]).mean(-3)
    own = F.adaptive_avg_pool2d(error.flatten(0, 2)[:, None], grid)
    around = F.avg_pool2d(F.pad(own, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return -around.flatten(1).unflatten(0, error.shape[:3])
