"""Distances between predicted and true pictures that cost something: features of each picture are computed once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldsim.rl.memo import distinct

Features = list[Tensor]
BATCH = 16
"""Pictures in one pass."""


@torch.no_grad()
def compared(
    prediction: Tensor,
    truth: Tensor,
    tokens: Tensor,
    features: Callable[[Tensor], Features],
    distance: Callable[[Features, Features], Tensor],
) -> Tensor:
    """``distance(features(predicted frame), features(true frame))``, float32 ``[P, n, F]``.

    Args:
        features: ``[B, 3, H, W]`` -> tensors of B rows; called once per true frame and once per different predicted one.
        distance: of B rows of features and B others -> ``[B]``.
    """
    groups, samples, frames = prediction.shape[:3]
    out = prediction.new_empty(groups, samples * frames)
    for p in range(groups):
        true = features(truth[p])
        pictures = prediction[p].flatten(0, 1)
        first, which = distinct(tokens[p].flatten(0, 1))
        step = torch.arange(samples * frames, device=which.device) % frames
        pairs, back = torch.unique(which * frames + step, return_inverse=True)  # sorted by picture, then by frame
        values = []
        for at in range(0, len(first), BATCH):
            found = features(pictures[first[at : at + BATCH]])
            those = pairs[(pairs >= at * frames) & (pairs < (at + BATCH) * frames)]
            for some in those.split(BATCH):
                mine, theirs = some // frames - at, some % frames
                values.append(distance([rows[mine] for rows in found], [rows[theirs] for rows in true]))
        out[p] = torch.cat(values).to(out.dtype)[back]
    return out.view(groups, samples, frames)
