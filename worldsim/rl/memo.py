"""What is computed once although it occurs often: equal rows of tokens stand for equal pictures."""

from __future__ import annotations

import torch
from torch import Tensor


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows of int64 ``[R, L]``: (where each first occurs ``[U]``, which of them each row is ``[R]``).

    ``rows[first][inverse] == rows``; in order of first occurrence, so the result does not depend on the values of ids.
    """
    _, inverse = torch.unique(rows, dim=0, return_inverse=True)
    count = int(inverse.max()) + 1
    places = torch.arange(len(rows), device=rows.device)
    first = places.new_full((count,), len(rows)).scatter_reduce(0, inverse, places, "amin")
    order = first.argsort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count, device=rows.device)
    return first[order], rank[inverse]


def repeats(tokens: Tensor, given: Tensor | None = None) -> Tensor:
    """Which predicted frames have the very tokens of the frame before them, bool ``[P, n, F]``.

    Args:
        tokens: int64 ``[P, n, F, L]``. given: those of the last given frame ``[P, L]``, which precedes the first predicted
            one; without them the first frame repeats nothing.
    """
    same = tokens.new_zeros(tokens.shape[:3], dtype=torch.bool)
    same[:, :, 1:] = (tokens[:, :, 1:] == tokens[:, :, :-1]).all(-1)
    if given is not None:
        same[:, :, 0] = (tokens[:, :, 0] == given[:, None]).all(-1)
    return same
