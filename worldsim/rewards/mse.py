"""Minus the mean squared error of pixels."""

from __future__ import annotations

from torch import Tensor

from worldsim.core.registry import register

CARD = {
    "title": "Minus the mean squared error of pixels in 0..1",
    "source": "RLVR-World, arXiv:2505.13934 fig. 4c",
    "size": "no weights",
    "license": "Apache-2.0",
    "best": 0.0,
}


@register("rewards")
def mse(prediction: Tensor, truth: Tensor, tokens: Tensor, last: Tensor, given: Tensor | None = None) -> Tensor:
    """``-mean (prediction - truth)^2`` over channels and pixels: -1 to 0 (equal), ``[P, n, F]``."""
    return -(prediction - truth[:, None]).square().mean((-3, -2, -1))
