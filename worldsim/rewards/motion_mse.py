"""Minus the mean squared error of the pixels that move in the truth."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from worldsim.core.registry import register

CARD = {
    "title": "Minus the mean squared error over the pixels that moved in the truth",
    "source": "worldsim",
    "size": "no weights",
    "license": "Apache-2.0",
    "best": 0.0,
}
THRESHOLD, REACH = 10 / 255, 2
"""As in the metric ``motion_mse``: a change counts from here on, in any channel, and so does what is near it, px."""


def moved(truth: Tensor, last: Tensor) -> Tensor:
    """Where the truth differs from the last given frame: float ``[P, F, H, W]``, 0 or 1, from ``[P, F, 3, H, W]``.

    What the prediction changed takes no part, so that no prediction can choose where it is looked at.
    """
    # frames are bytes over 255: half a step of tolerance keeps a change of exactly 10 out, as the metric does
    change = ((truth - last[:, None]).abs().amax(-3) > THRESHOLD + 0.5 / 255).float()
    return F.max_pool2d(change, 2 * REACH + 1, 1, REACH)


@register("rewards")
def motion_mse(prediction: Tensor, truth: Tensor, tokens: Tensor, last: Tensor, given: Tensor | None = None) -> Tensor:
    """``-mean (prediction - truth)^2`` over channels and the pixels of :func:`moved`, ``[P, n, F]``: -1 to 0 (equal).

    0 in frames where nothing moves. It does not see motion that is invented elsewhere: add ``mse``.
    """
    mask = moved(truth, last)[:, None]
    error = (prediction - truth[:, None]).square().mean(-3) * mask
    return -error.sum((-2, -1)) / mask.sum((-2, -1)).clamp(min=1)
