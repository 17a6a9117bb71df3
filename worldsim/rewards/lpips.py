"""Minus LPIPS, the learned perceptual distance. Needs weights that this project may not bundle."""

from __future__ import annotations

from torch import Tensor

from worldsim.core.registry import register
from worldsim.metrics.lpips import Lpips as Metric
from worldsim.rewards._pairs import compared

CARD = {
    "title": "Minus LPIPS v0.1 on AlexNet features",
    "source": "Zhang et al. 2018, arXiv:1801.03924; RLVR-World takes the VGG variant",
    "size": "233 MB (AlexNet), 6 KB (heads)",
    "license": "Apache-2.0 (code); weights BSD-2 and BSD-3",
    "best": 0.0,
}


@register("rewards")
class Lpips:
    """``-LPIPS(prediction, truth)``, 0 for equal frames and about -1 for unrelated ones, ``[P, n, F]``; frames of at least
    32 x 32 pixels. The same numbers as the metric ``lpips`` but for its rounding of pixels to 8 bits."""

    def __init__(self, device: str = "cpu", metric: Metric | None = None) -> None:
        self.metric = metric or Metric()
        self.metric.backbone.to(device)

    @staticmethod
    def unavailable() -> str | None:
        return Metric.unavailable()

    @classmethod
    def tiny(cls, seed: int = 0) -> Lpips:
        """Random weights of the real shapes: shows that the arithmetic runs, never a score."""
        return cls(metric=Metric.tiny(seed))

    def __call__(
        self, prediction: Tensor, truth: Tensor, tokens: Tensor, last: Tensor, given: Tensor | None = None
    ) -> Tensor:
        def features(frames: Tensor) -> list[Tensor]:
            return self.metric.maps(frames * 2 - 1)

        return -compared(prediction, truth, tokens, features, self.metric.distance)
