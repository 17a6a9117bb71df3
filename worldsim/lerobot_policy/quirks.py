"""What single kinds of LeRobot policies need so that they are built from their own file alone, whole, and run here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from worldsim.lerobot_policy.bridge import bridged, renamed

OWN_NAMES = ("pi0", "pi05")
"""Kinds whose published files have openpi's names."""
LANGUAGE = ("smolvla", "pi0", "pi05", "pi0_fast")
"""Kinds whose language model was written against an older transformers (``lerobot_policy.bridge``)."""


class Quirks:
    """One policy's, from its config to its weights: ``prepare`` before it is built, ``rename_keys`` before it is filled."""

    def __init__(self) -> None:
        self.half = False

    def prepare(self, config: Any) -> None:
        """Nothing is downloaded that the policy's own file replaces: an image backbone, a language model."""
        if hasattr(config, "pretrained_backbone_weights"):
            config.pretrained_backbone_weights = None
        if config.type == "smolvla":  # LeRobot would load the language model from its own repository, in bfloat16
            self.half, config.load_vlm_weights = config.load_vlm_weights, False

    def rename_keys(self, policy: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors under the policy's own names: openpi's become LeRobot's, by LeRobot's own table."""
        if self.half:
            policy.model.vlm_with_expert.vlm.to(torch.bfloat16)
        if policy.config.type not in OWN_NAMES:
            return weights
        fixed = policy._fix_pytorch_state_dict_keys(weights, policy.config)
        whole = {key if key.startswith("model.") else f"model.{key}": value for key, value in fixed.items()}
        return renamed(policy.state_dict(), whole)


@contextmanager
def running(kind: str) -> Iterator[None]:
    """A policy of this kind runs with the transformers that is installed."""
    if kind in LANGUAGE:
        with bridged():
            yield
    else:
        yield
