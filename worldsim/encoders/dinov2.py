"""DINOv2: the backbone of the world-token experiment. Its summary is the class token after the last norm."""

from __future__ import annotations

from typing import Any, Self

from worldsim.core.registry import register
from worldsim.encoders._hf import HFEncoder
from worldsim.encoders._preparation import IMAGENET, Preparation

CARD = {
    "title": "DINOv2 vision transformer",
    "source": "https://huggingface.co/facebook/dinov2-base",
    "size": "86.6 M parameters (346 MB)",
    "license": "Apache-2.0",
    "kind": "vision",
}
PREPARATION = Preparation((256,), (224, 224), *IMAGENET)
"""What facebook/dinov2-base's preprocessor_config.json says: shortest side 256, bicubic, then a centred cut of 224."""


@register("encoders")
class Dinov2(HFEncoder):
    """``dinov2``: patches of 14 px; an input of 224 px gives 16 x 16 of 768 (base)."""

    Model, REPO, name = "Dinov2Model", "facebook/dinov2-base", "dinov2"

    @classmethod
    def base(cls, seed: int = 0) -> Self:
        """Random weights at the geometry of facebook/dinov2-base, to measure speed with."""
        return cls._sized({"image_size": 518}, PREPARATION, seed)

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """Random weights: 4 x 4 patches of 16."""
        net = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "mlp_ratio": 2}
        return cls._sized(net, Preparation((64,), (56, 56), *IMAGENET), seed)

    @classmethod
    def _sized(cls, net: dict[str, Any], preparation: Preparation, seed: int) -> Self:
        from transformers import Dinov2Config

        return cls.random(Dinov2Config(patch_size=14, **net), preparation, seed)
