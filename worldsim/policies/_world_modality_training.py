"""The loss of a world-modality arm, its scores on held-out windows, and the lines that tell of both.

``L = MSE(actions) + lambda * CE(future tokens)``; the CE is the mean over all K horizons and P positions.
# source: world-modality-vla@7b3d6e7:world_modality/train.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.data.policy_windows import PolicyWindows
from worldsim.policies._world_modality_net import ModalityNet
from worldsim.train.settings import Training

LOSS, ACTION, WORLD = "train/loss", "train/action_loss", "train/world_loss"
VAL_ACTION, VAL_WORLD, VAL_TOP5 = "val/action_mse", "val/world_acc", "val/world_top5"


@dataclass(frozen=True)
class LossSpec:
    """What is minimised.

    Attributes:
        lambda_world: weight of the cross-entropy; an arm that predicts nothing has none.
        label_smoothing: of the cross-entropy, 0 … 1.
        change_point_weight: weight of a future token that differs from the current one, where others have 1.
    """

    lambda_world: float = 0.2
    label_smoothing: float = 0.0
    change_point_weight: float = 1.0


class ModalityLoss(nn.Module):
    """What ``train.loop.fit`` trains; takes the entries of ``PolicyWindows.batch``."""

    def __init__(self, net: ModalityNet, spec: LossSpec) -> None:
        super().__init__()
        self.net, self.spec = net, spec
        self.numbers: dict[str, Tensor] = {}

    def forward(self, states: Tensor, actions: Tensor, tokens: Tensor, future_tokens: Tensor, embeddings: Tensor) -> Tensor:
        memory = future_tokens if self.net.arm.memory == "true" else None
        said = self.net(states, embeddings, tokens, memory)
        action = loss = F.mse_loss(said.actions, actions)
        self.numbers = {ACTION: action.detach()}
        if said.logits is not None:
            world = self.world_loss(said.logits, tokens, future_tokens)
            loss = action + self.spec.lambda_world * world
            self.numbers[WORLD] = world.detach()
        self.numbers[LOSS] = loss.detach()
        return loss

    def world_loss(self, logits: Tensor, tokens: Tensor, future: Tensor) -> Tensor:
        """Cross-entropy of ``logits [B, K, P, N]`` against ``future [B, K, P]``, a weighted mean."""
        each = F.cross_entropy(
            logits.flatten(0, 2), future.flatten(), reduction="none", label_smoothing=self.spec.label_smoothing
        )
        if self.spec.change_point_weight == 1.0:
            return each.mean()
        changed = (future != tokens[:, -1:]).flatten()
        weights = torch.where(changed, self.spec.change_point_weight, 1.0)
        return (each * weights).sum() / weights.sum().clamp(min=torch.finfo(each.dtype).tiny)

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.net.named_parameters())

    def groups(self, settings: Training) -> list[dict[str, Any]]:
        return [{"params": list(self.net.parameters()), "lr": settings.lr}]

    def blocks(self) -> list[nn.Module]:
        return list(self.net.encoder.blocks)


def batches(count: int, size: int) -> Iterator[np.ndarray]:
    """Indices 0 … count - 1 in order, ``size`` at a time."""
    for at in range(0, count, size):
        yield np.arange(at, min(at + size, count))


def validate(net: ModalityNet, windows: PolicyWindows, batch: int = 256) -> dict[str, float]:
    """``val/action_mse`` (normalised, the mean over all numbers of all windows), ``val/world_acc`` and ``val/world_top5`` (0 for
    an arm that predicts nothing), each window counted once."""
    square, hits, near = 0.0, 0.0, 0.0
    for indices in batches(len(windows), batch):
        part = windows.batch(indices)
        said = net.predict(part)
        square += float((said.actions.cpu().double() - part["actions"]).square().mean((1, 2)).sum())
        if said.logits is not None:
            right = said.logits.argmax(-1).cpu() == part["future_tokens"]
            hits += float(right.double().mean((1, 2)).sum())
            best = said.logits.topk(min(5, said.logits.shape[-1])).indices.cpu()
            near += float((best == part["future_tokens"][..., None]).any(-1).double().mean((1, 2)).sum())
    return {VAL_ACTION: square / len(windows), VAL_WORLD: hits / len(windows), VAL_TOP5: near / len(windows)}


def line(row: Mapping[str, Any], per_epoch: int) -> str | None:
    """A row of ``metrics.jsonl`` as the experiment's first program said it; None for a row of another kind.

    ``Epoch 2 Step 50 | loss 0.1234 | act 0.1000 | world 1.2345`` and ``[VAL] Epoch 2 | action MSE 0.1234 | world acc 0.5678``.
    """
    step = int(row["step"])
    if VAL_ACTION in row:
        epoch = -(-step // per_epoch)
        return f"[VAL] Epoch {epoch} | action MSE {row[VAL_ACTION]:.4f} | world acc {row[VAL_WORLD]:.4f}"
    if LOSS not in row:
        return None
    epoch = 1 + (step - 1) // per_epoch
    world = f" | world {row[WORLD]:.4f}" if WORLD in row else ""
    return f"Epoch {epoch} Step {step} | loss {row[LOSS]:.4f} | act {row[ACTION]:.4f}{world}"
