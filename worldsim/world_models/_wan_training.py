"""The loss of a Wan world model: rectified flow on cached latents, given latents clean and out of the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from worldsim.nn import flow
from worldsim.nn.flow import TimeSampling
from worldsim.train.settings import Training
from worldsim.world_models._wan_conditioning import given_latents
from worldsim.world_models._wan_net import WanNet

CONDITIONER_LR = 4.0
"""The conditioner starts from nothing and learns this much faster than the LoRA unless told otherwise."""


class FlowLoss(nn.Module):
    """What the loop trains: ``forward(**batch) -> loss``, with all its randomness from torch's generator.

    Args:
        histories: numbers of given latents to draw from, uniformly, per clip.
        times: how sigma is drawn, per clip.
        bump: weigh by the reference's Gaussian bump instead of evenly.
        dropout: probability that a clip's actions are hidden, so that action guidance exists.
        history_noise: given latents get Gaussian noise of a deviation that is drawn per clip between 0 and this, so that
            a long rollout forgives the errors in the frames that it imagined itself. Their time stays 0.
            # source: GameNGen (arXiv 2408.14837, section 3.2.1), noise augmentation of the conditioning frames
    """

    def __init__(
        self,
        net: WanNet,
        histories: tuple[int, ...],
        times: TimeSampling,
        bump: bool = False,
        dropout: float = 0.1,
        history_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.net, self.times, self.bump, self.dropout = net, times, bump, dropout
        self.histories, self.history_noise = histories, history_noise

    def forward(
        self, latents: Tensor, actions: Tensor, text: Tensor, condition: Tensor | None = None, image: Tensor | None = None
    ) -> Tensor:
        """Scalar, fp32.

        Args:
            latents: clean and normalised, ``[B, z, F', h, w]``.
            actions: normalised, ``[B, F - 1, r, A]``.
            text: ``[B, L, text_dim]``.
            condition: ``[B, M, z, F', h, w]``, one per entry of ``histories``.
            image: ``[B, n, image_dim]``.
        """
        x0, count = latents.float(), len(latents)
        device = x0.device
        choice = torch.randint(len(self.histories), (count,), device=device)
        history = torch.tensor(self.histories, device=device)[choice]
        sigma = self.times.sample(count).to(device)
        dropped = torch.rand(count, device=device) < self.dropout
        noise = torch.randn_like(x0)
        given = given_latents(history, x0.shape[2])
        off = self._history_errors(x0, given)
        x = flow.noised(x0 + off, noise, sigma.view(-1, 1, 1, 1, 1))
        if condition is None:
            x = torch.where(given[:, None, :, None, None], x0 + off, x)
        else:
            condition = condition[torch.arange(count, device=device), choice].float() + off
        predicted = self.net(x, flow.timestep(sigma), text, actions, history, dropped, condition, image)
        wrong = (predicted - flow.velocity(x0, noise)) * self.net.trust(sigma).view(-1, 1, 1, 1, 1)
        error = (wrong**2).mean(dim=(1, 3, 4))
        return self._mean(error, ~given, sigma)

    def _history_errors(self, x0: Tensor, given: Tensor) -> Tensor | float:
        """What is added to given latents, ``[B, z, F', h, w]``, zero elsewhere; draws nothing when it is off."""
        if not self.history_noise:
            return 0.0
        deviation = self.history_noise * torch.rand(len(x0), 1, 1, 1, 1, device=x0.device)
        return torch.randn_like(x0) * deviation * given[:, None, :, None, None]

    def _mean(self, error: Tensor, wanted: Tensor, sigma: Tensor) -> Tensor:
        """Mean over each clip's latents that were not given, then over clips. ``error`` is ``[B, F']``."""
        per_clip = (error * wanted).sum(1) / wanted.sum(1)
        if self.bump:
            per_clip = per_clip * flow.bump_weight(sigma.cpu(), self.times.shift).to(per_clip.device)
        return per_clip.mean()

    def trained(self) -> dict[str, nn.Parameter]:
        return self.net.trained()

    def blocks(self) -> list[nn.Module]:
        """The transformer's layers: what FSDP2 brings together one at a time."""
        return list(self.net.transformer.blocks)

    def groups(self, settings: Training) -> list[dict[str, Any]]:
        """LoRA (or all weights) at ``lr``, the conditioner at its own rate."""
        by_kind: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, parameter in self.trained().items():
            by_kind[name.startswith("conditioner.")].append(parameter)
        faster = settings.conditioner_lr if settings.conditioner_lr is not None else CONDITIONER_LR * settings.lr
        return [{"params": by_kind[False], "lr": settings.lr}, {"params": by_kind[True], "lr": faster}]
