"""Rewards that are sums over pixels, told cell by cell: what a token is credited with by the picture around it."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from worldsim.rewards.motion_mse import moved

ErrorMap = Callable[[Tensor, Tensor, Tensor], Tensor]


def _squared(difference: Tensor, truth: Tensor, last: Tensor) -> Tensor:
    return difference.square().mean(-3)


def _absolute(difference: Tensor, truth: Tensor, last: Tensor) -> Tensor:
    return difference.abs().mean(-3)


def _squared_where_moved(difference: Tensor, truth: Tensor, last: Tensor) -> Tensor:
    mask = moved(truth, last)
    share = mask.mean((-2, -1), keepdim=True).clamp(min=1 / mask[0, 0].numel())
    return difference.square().mean(-3) * (mask / share)[:, None]


PIXELWISE: dict[str, ErrorMap] = {"mse": _squared, "mae": _absolute, "motion-mse": _squared_where_moved}
"""``error(prediction - truth [P, n, F, 3, H, W], truth, last) -> [P, n, F, H, W]``; the reward of that name is minus its mean
over pixels."""


def cells(name: str, prediction: Tensor, truth: Tensor, last: Tensor, grid: tuple[int, int]) -> Tensor:
    """Minus the mean error of each token's cell, ``[P, n, F, L]``, row by row; its mean over cells is the whole reward.

    A token also shows a little beyond its cell, which its neighbours answer for: there, their share is the larger one.

    Args:
        name: of a reward in ``PIXELWISE``. prediction: ``[P, n, F, 3, H, W]``. truth: ``[P, F, 3, H, W]``. last: the last
            given frame, ``[P, 3, H, W]``.
        grid: rows and columns of a frame's tokens; they divide H and W.
    """
    error = PIXELWISE[name](prediction - truth[:, None], truth, last)
    own = F.adaptive_avg_pool2d(error.flatten(0, 2)[:, None], grid)
    return -own.flatten(1).unflatten(0, error.shape[:3])
