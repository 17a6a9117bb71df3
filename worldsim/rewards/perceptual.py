"""Minus a perceptual distance that needs no weights."""

from __future__ import annotations

from torch import Tensor

from worldsim.core.registry import register
from worldsim.nn.perceptual import perceptual as distance
from worldsim.rewards._pairs import compared

CARD = {
    "title": "Minus the distance of colour, edges and local contrast over a pyramid",
    "source": "worldsim.nn.perceptual",
    "size": "no weights",
    "license": "Apache-2.0",
    "best": 0.0,
}


@register("rewards")
def perceptual(prediction: Tensor, truth: Tensor, tokens: Tensor, last: Tensor, given: Tensor | None = None) -> Tensor:
    """``-perceptual(prediction, truth)``, -2 to 0 (equal), ``[P, n, F]``; sees blur, which a squared error forgives."""
    return -compared(prediction, truth, tokens, lambda frames: [frames], lambda a, b: distance(a[0], b[0]))
