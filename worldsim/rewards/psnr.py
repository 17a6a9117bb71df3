"""Peak signal-to-noise ratio."""

from __future__ import annotations

from torch import Tensor

from worldsim.core.registry import register

CARD = {
    "title": "Peak signal-to-noise ratio in dB",
    "source": "RLVR-World, arXiv:2505.13934 fig. 4c (piqa, epsilon 1e-8)",
    "size": "no weights",
    "license": "Apache-2.0",
    "best": 80.0,
}
EPSILON = 1e-8


@register("rewards")
def psnr(prediction: Tensor, truth: Tensor, tokens: Tensor, last: Tensor, given: Tensor | None = None) -> Tensor:
    """``-10 log10(mse + 1e-8)`` of pixels in 0..1: about 0 to 80 dB (equal), ``[P, n, F]``.

    Beside an error in 0..1 it is large: ``0.01*psnr+lpips`` weighs about evenly.
    """
    return -10 * ((prediction - truth[:, None]).square().mean((-3, -2, -1)) + EPSILON).log10()
