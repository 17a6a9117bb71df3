"""One of this project's own tokenizers as a vision backbone: its de-quantised codes, cell by cell, and all of them as one row.

Encoders may not import tokenizers; whoever may hands one in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worldsim.core.errors import UserError
from worldsim.encoders._preparation import Preparation
from worldsim.encoders._vision import FROM_TOKENIZER, Features, VisionEncoder


class Codes(VisionEncoder):
    """Frames are coded alone: a per-frame tokenizer's tokens, or the context tokens of a context-conditioned one."""

    name = "tokenizer"

    def __init__(self, tokenizer: Any, source: str, revision: str) -> None:
        super().__init__()
        if not hasattr(tokenizer, "quantize"):
            raise UserError(f"{source} holds no tokenizer with a quantiser of its own: it cannot serve as a vision model")
        self.module, self.source, self.revision = tokenizer, f"{FROM_TOKENIZER}{source}", revision
        self.preparation = Preparation((tokenizer.height, tokenizer.width), None, filter="bilinear")
        self.grid = tokenizer.cells if tokenizer.context_tokens else tokenizer.grid
        self.dim = len(tokenizer.levels)
        self.summary_dim = self.grid[0] * self.grid[1] * self.dim

    @torch.no_grad()
    def features(self, view: Tensor) -> Features:
        frames = view.to(self.device).movedim(1, -1)
        alone = (
            self.module.encode_context(frames) if self.module.context_tokens else self.module.encode(frames[:, None])[:, 0]
        )
        patches = self.module.quantize.decode(alone).float()
        return Features(patches, patches.flatten(1))
