"""The loss of a token world model: cross-entropy of the tokens that it has to predict, and of no other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.train.settings import Training
from worldsim.world_models._token_layout import Layout
from worldsim.world_models._token_net import TokenNet


class TokenLoss(nn.Module):
    """What ``train.loop.fit`` trains. bf16 autocast on a GPU, over fp32 weights.

    Args:
        legal: softmax over the codes that a frame token may be; False over the whole vocabulary, as the released models,
            whose BOS and EOS are learnt too.
    """

    learnt: Tensor

    def __init__(self, net: TokenNet, layout: Layout, legal: bool = True) -> None:
        super().__init__()
        self.net, self.high = net, layout.codes if legal else layout.vocab
        mask = layout.loss_mask()
        if legal:  # BOS and EOS are certain: nothing to learn
            mask = mask & _frames(layout)
        self.register_buffer("learnt", torch.nonzero(mask)[:, 0], persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Mean cross-entropy in nats per predicted token.

        Args:
            ids: int64 ``[B, total]``, whole sequences.
        """
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda):
            hidden = self.net.hidden(ids[:, :-1]).index_select(1, self.learnt - 1)
            logits = self.net.head(hidden, 0, self.high)
        return F.cross_entropy(logits.float().flatten(0, 1), ids.index_select(1, self.learnt).flatten())

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.net.named_parameters())

    def groups(self, settings: Training) -> list[dict[str, Any]]:
        return [{"params": list(self.net.parameters()), "lr": settings.lr}]

    def blocks(self) -> list[nn.Module]:
        return list(self.net.model.layers)


def _frames(layout: Layout) -> Tensor:
    """Bool ``[total]``: positions of predicted frame tokens."""
    runs = [torch.full((segment.length,), segment.generated) for segment in layout.response]
    return torch.cat([torch.zeros(layout.prompt_length, dtype=torch.bool), *runs])
