"""A penalty for standing still where the truth goes on."""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim.core.registry import register
from worldsim.rl.memo import repeats

CARD = {
    "title": "Minus 1 for each predicted frame with the very tokens of the frame before it, where the truth moved",
    "source": "RLVR-World, arXiv:2505.13934 section 6.3 (not in its released code)",
    "size": "no weights",
    "license": "Apache-2.0",
    "best": 0.0,
}
MOVED = 10 / 255
"""The truth moved when a channel of any pixel changed by more than this; the threshold of the motion metrics."""


@register("rewards")
def repetition(prediction: Tensor, truth: Tensor, tokens: Tensor, last: Tensor, given: Tensor | None = None) -> Tensor:
    """-1 where a frame repeats the tokens of its predecessor although the truth moved between the two, else 0, ``[P, n, F]``.

    A pause in the truth may be repeated freely: only repetition beyond the truth's own is punished. The first frame's
    predecessor is the last given frame; without its tokens (``given``) the first frame is never punished. Averaged over
    frames this is minus the rate of wrong repetitions.
    """
    earlier = torch.cat([last[:, None], truth[:, :-1]], 1)
    moved = ((truth - earlier).abs() > MOVED).flatten(2).any(-1)
    return -(repeats(tokens, given) & moved[:, None]).to(prediction.dtype)
