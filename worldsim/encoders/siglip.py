"""SigLIP's picture tower. Its summary is the attention-pooled head that the contrastive loss was put on."""

from __future__ import annotations

from typing import Self

from worldsim.core.registry import register
from worldsim.encoders._hf import HFEncoder
from worldsim.encoders._preparation import Preparation

CARD = {
    "title": "SigLIP vision transformer",
    "source": "https://huggingface.co/google/siglip-base-patch16-224",
    "size": "92.9 M parameters (picture tower)",
    "license": "Apache-2.0",
    "kind": "vision",
}
HALF = (0.5, 0.5, 0.5)


@register("encoders")
class Siglip(HFEncoder):
    """``siglip``: the whole frame is resized to a square, its aspect is not kept."""

    Model, REPO, name = "SiglipVisionModel", "google/siglip-base-patch16-224", "siglip"

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """Random weights: 4 x 4 patches of 16."""
        from transformers import SiglipVisionConfig

        net = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        return cls.random(
            SiglipVisionConfig(image_size=64, patch_size=16, **net), Preparation((64, 64), None, HALF, HALF), seed
        )
