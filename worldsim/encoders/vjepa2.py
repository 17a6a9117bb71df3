"""V-JEPA 2's encoder, a video model, for single frames.

Its patches are tubelets of ``tubelet_size`` (2) frames. A frame is shown as a clip of ``tubelet_size`` equal frames, one
tubelet deep, which is what the model itself does with a clip shorter than a tubelet: a world token is a function of one frame,
at training time, in a column and on a robot alike. What moves between frames is therefore not in the token. There is no class
token; ``auto`` pooling is the mean of the patches. The predictor is not run.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor

from worldsim.core.registry import register
from worldsim.encoders._hf import HFEncoder
from worldsim.encoders._preparation import IMAGENET, Preparation
from worldsim.encoders._vision import Features

CARD = {
    "title": "V-JEPA 2 encoder, one frame at a time",
    "source": "https://huggingface.co/facebook/vjepa2-vitl-fpc64-256",
    "size": "326 M parameters (ViT-L), 1.03 B (ViT-g)",
    "license": "MIT",
    "kind": "vision",
}


@register("encoders")
class VJepa2(HFEncoder):
    """``vjepa2``: patches of 16 px; an input of 256 px gives 16 x 16 of 1024 (ViT-L) or 1408 (ViT-g)."""

    Model, Processor, REPO, name = "VJEPA2Model", "AutoVideoProcessor", "facebook/vjepa2-vitl-fpc64-256", "vjepa2"

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """Random weights: 4 x 4 patches of 24."""
        from transformers import VJEPA2Config

        net = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
        predictor = {"pred_hidden_size": 24, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
        config = VJEPA2Config(patch_size=16, crop_size=64, frames_per_clip=4, **net, **predictor)
        return cls.random(config, Preparation((73,), (64, 64), *IMAGENET, "bilinear"), seed)

    def _told(self, pixels: Tensor) -> Features:
        clip = pixels[:, None].expand(-1, self.module.config.tubelet_size, -1, -1, -1)
        out = self.module(pixel_values_videos=clip, skip_predictor=True)
        return self._split(out.last_hidden_state, None)
