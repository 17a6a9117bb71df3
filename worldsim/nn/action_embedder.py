"""Actions as one vector per video latent, aligned with a causal video VAE that packs four frames into one latent.

F = 1 + 4K frames give 1 + K latents: latent 0 holds frame 0, latent k >= 1 holds frames 4k - 3 … 4k and is driven by the
actions 4(k - 1) … 4k - 1 between them; nothing drives latent 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldsim.core.errors import UserError


class ActionEmbedder(nn.Module):
    """A clip's actions -> one vector per latent, for adding to a transformer's tokens or time embedding.

    The rows of one group are concatenated, not pooled, so their order counts. The last layer starts at zero: a freshly
    conditioned model gives exactly what its base gives.
    # source: the group-of-4 encoders of Cosmos-Predict2.5 and of the Wan world models; adaLN-zero (DiT)

    Args:
        rows: action rows per latent (4 video frames times the source rows between two of them).
        action_dim: A.
        dim: D, width of a vector.
        hidden: width of the two hidden layers.
        indexed: also tell each vector which latent it is for (sines and cosines of its index, before the last layer), for
            readers that would not know it, such as cross-attention.
        sums: also show each group the running sums of its rows since the last given frame: where motion that is told in
            differences has led by then. A sum looks back only, and never at what led to given frames: a rollout's later
            chunks read the sums that training read.
    """

    def __init__(
        self, rows: int, action_dim: int, dim: int, hidden: int, indexed: bool = False, sums: bool = False
    ) -> None:
        super().__init__()
        self.rows, self.action_dim, self.dim, self.indexed, self.sums = rows, action_dim, dim, indexed, sums
        last = nn.Linear(hidden, dim)
        self.net = nn.Sequential(
            nn.Linear(rows * action_dim * (1 + sums), hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last
        )
        self.given = nn.Parameter(torch.zeros(dim))
        self.null = nn.Parameter(torch.zeros(dim))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, actions: Tensor, history: Tensor | int = 1, dropped: Tensor | None = None) -> Tensor:
        """Normalised actions ``[B, F - 1, r, A]`` -> ``[B, 1 + K, D]``.

        Args:
            history: latents at the start that are given, ``[B]`` or one number, >= 1; they get the learned ``given`` vector
                whatever the actions were, because clean latents need no cause.
            dropped: bool ``[B]``, clips whose actions are hidden: their other latents get the learned ``null`` vector.
        """
        batch = len(actions)
        rows = actions.reshape(batch, -1, self.action_dim)
        if rows.shape[1] % self.rows:
            raise UserError(f"{rows.shape[1]} action rows do not fill groups of {self.rows}; a clip has 4k + 1 frames")
        count = torch.as_tensor(history, device=actions.device).expand(batch)
        if self.sums:
            rows = torch.cat([rows, self._sums(rows, count)], dim=-1)
        driven = self._driven(rows.reshape(batch, rows.shape[1] // self.rows, -1))
        hide = torch.zeros(batch, dtype=torch.bool, device=actions.device) if dropped is None else dropped
        driven = torch.where(hide[:, None, None], self.null.to(driven.dtype), driven)
        first = self.given.to(driven.dtype).expand(batch, 1, self.dim)
        out = torch.cat([first, driven], dim=1)
        is_given = torch.arange(out.shape[1], device=actions.device) < count[:, None]
        return torch.where(is_given[..., None], self.given.to(out.dtype), out)

    def _sums(self, rows: Tensor, history: Tensor) -> Tensor:
        """Running sums ``[B, n, A]`` of the rows after the last given frame, over the root of a group's size."""
        first = self.rows * (history - 1)  # latent 0 has no rows
        after = torch.arange(rows.shape[1], device=rows.device) >= first[:, None]
        return (rows * after[..., None]).cumsum(1) / self.rows**0.5

    def _driven(self, groups: Tensor) -> Tensor:
        """``[B, K, rows * A]`` -> ``[B, K, D]``."""
        hidden = self.net[:-1](groups)
        if self.indexed:
            hidden = hidden + index_waves(groups.shape[1], hidden.shape[-1]).to(hidden)
        return self.net[-1](hidden)


def index_waves(count: int, width: int) -> Tensor:
    """Sines, then cosines, of 1 … ``count`` at geometric wavelengths, fp32 ``[count, width]``.

    # source: the position code of "Attention is all you need"
    """
    half = (width + 1) // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = torch.arange(1, count + 1, dtype=torch.float32)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)[:, :width]
