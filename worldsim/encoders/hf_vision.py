"""Any other vision transformer of transformers that takes pictures and gives tokens: ViT, DINOv2 with registers, DINOv3, …."""

from __future__ import annotations

from typing import Self

from worldsim.core.registry import register
from worldsim.encoders._hf import HFEncoder
from worldsim.encoders._preparation import Preparation

CARD = {
    "title": "Any vision transformer of transformers, by repository or folder",
    "source": "https://huggingface.co/docs/transformers (AutoModel, AutoImageProcessor)",
    "size": "as its config says",
    "license": "its own",
    "kind": "vision",
}
HALF = (0.5, 0.5, 0.5)


@register("encoders")
class HFVision(HFEncoder):
    """``hf-vision``: the name stands for google/vit-base-patch16-224-in21k; any other is named by its repository."""

    REPO = "google/vit-base-patch16-224-in21k"

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """A random ViT: 2 x 2 patches of 16."""
        from transformers import ViTConfig

        net = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        return cls.random(ViTConfig(image_size=32, patch_size=16, **net), Preparation((32, 32), None, HALF, HALF), seed)
