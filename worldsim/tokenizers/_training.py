"""What a tokenizer is trained by: pixels, a perceptual distance, and from some step on a critic.

One schedule: in every step the tokenizer gets its gradient from (L1, L2, perceptual, critic's verdict) and, from
``gan_start`` on, the critic its own, each from its own loss, clipped by itself, in one optimiser. The reference lets them
take turns by batch, counts both as steps, idles through every second batch before ``gan_start``, and so reaches only the
middle of its cosine; a step here is one update of each.
# source: RLVR-World, arXiv:2505.13934, table 7; VQGAN, Esser et al. 2021, for the sum of losses
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim.core.config import config
from worldsim.tokenizers._critic import Critic, critic_loss, fooling_loss
from worldsim.train.settings import Training

NET, CRITIC = "net.", "critic."
MOVED = 10 / 255
"""A pixel has moved where any colour differs by more than this from the context frame; 2 pixels around it count too."""


@config
class Loss:
    """Weights of the parts of the loss.

    Attributes:
        l1, l2: mean absolute and mean squared error of pixels in 0 … 1.
        perceptual: of the perceptual distance. distance: ``lpips`` (needs weights), ``pyramid`` (fixed filters, needs none),
            or ``auto``: lpips where its weights are.
        motion: how much more pixels count in l1 and l2 that have moved since the context frame; 0 is not at all.
        gan: of the critic's verdict; 0 trains no critic. gan_start: step from which there is one.
        gan_lr: its peak learning rate; null is that of the tokenizer. gan_width, gan_depth: its size.
        gan_penalty: of its slope at real pictures.
    """

    l1: float = 1.0
    l2: float = 0.0
    perceptual: float = 1.0
    distance: str = "auto"
    motion: float = 0.0
    gan: float = 0.1
    gan_start: int = 10000
    gan_lr: float | None = None
    gan_width: int = 512
    gan_depth: int = 6
    gan_penalty: float = 10.0

    def __post_init__(self) -> None:
        for key in ("l1", "l2", "perceptual", "motion", "gan", "gan_start", "gan_penalty"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, but is {getattr(self, key)}")
        if self.distance not in ("auto", "lpips", "pyramid"):
            raise ValueError(f"distance must be auto, lpips or pyramid, but is {self.distance}")


class TokenizerLoss(nn.Module):
    """A tokenizer and its critic as one trainable module for ``train.loop.fit``.

    Args:
        net: any tokenizer of this shelf, whose ``forward(context, targets)`` gives decoded pictures beside the truth.
        distance: perceptual distance of two float ``[B, 3, H, W]`` in 0 … 1 -> ``[B]``.
    """

    def __init__(self, net: Any, weights: Loss, distance: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.weights = net, weights
        self.distance = (distance,)  # in a tuple, so that a module here is not one of our own
        side = min(net.height, net.width)
        self.critic = Critic(weights.gan_width, weights.gan_depth, side) if weights.gan else None
        self.numbers: dict[str, Tensor] = {}

    def forward(self, frames: Tensor, step: Tensor) -> Tensor:
        """
        Args:
            frames: uint8 ``[B, 1 + T, H, W, 3]``, a context frame and its targets. step: of the training, int64 ``[]``.

        Returns:
            the scalar to descend: the tokenizer's loss and the critic's, which share no parameter's gradient.
        """
        pictures = frames.movedim(-1, 2).float() / 255
        context, targets = pictures[:, 0], pictures[:, 1:]
        device = frames.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            parts, index = self.net(context, targets)
        loss = torch.zeros((), device=frames.device)
        numbers: dict[str, Tensor] = {}
        for name, (decoded, truth, still) in parts.items():
            own, said = self._pixels(decoded.float(), truth, still)
            loss, numbers = loss + own, numbers | {f"{name}_{key}": value for key, value in said.items()}
        numbers["codes_used"] = index.unique().numel() / torch.tensor(float(min(self.net.codes, index.numel())))
        if self.critic is not None:
            loss = loss + self._adversarial(parts, int(step) >= self.weights.gan_start, numbers)
        self.numbers = {key: value.detach() for key, value in numbers.items()}
        return loss

    def _pixels(self, decoded: Tensor, truth: Tensor, still: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one kind of pictures ``[N, 3, H, W]``, and its parts. still: the contexts, where motion can count."""
        weights, error = self.weights, decoded - truth
        weight = torch.ones_like(error[:, :1])
        if weights.motion and still is not None:
            moved = ((truth - still).abs().amax(1, keepdim=True) > MOVED).float()
            weight = weight + weights.motion * F.max_pool2d(moved, 5, 1, 2)
        l1, l2 = (error.abs() * weight).mean(), (error.square() * weight).mean()
        said = {"l1": error.detach().abs().mean(), "mse": error.detach().square().mean()}
        loss = weights.l1 * l1 + weights.l2 * l2
        if weights.perceptual:
            said["perceptual"] = self.distance[0](decoded, truth).mean()
            loss = loss + weights.perceptual * said["perceptual"]
        return loss, said

    def _adversarial(self, parts: dict[str, Any], begun: bool, numbers: dict[str, Tensor]) -> Tensor:
        """Both sides' adversarial losses; nothing but a path to the critic's weights before it begins."""
        assert self.critic is not None
        if not begun:  # several processes average gradients of every parameter, so each must have one
            return 0.0 * torch.stack([p.sum() for p in self.critic.parameters()]).sum()
        fake = torch.cat([decoded.float() for decoded, _, _ in parts.values()])
        real = torch.cat([truth for _, truth, _ in parts.values()])
        numbers["fooling"] = fooling_loss(self.critic, fake)
        numbers["critic"] = critic_loss(self.critic, real, fake.detach(), self.weights.gan_penalty)
        return self.weights.gan * numbers["fooling"] + numbers["critic"]

    def trained(self) -> dict[str, Tensor]:
        """Parameters, and the moments that are kept while training (of :class:`~worldsim.nn.quantize.Centre`, of spectral
        norms): a resume needs them as well, and a checkpoint averages them with the weights."""
        kept = self.state_dict().keys()
        return dict(self.named_parameters()) | {name: b for name, b in self.named_buffers() if name in kept}

    def groups(self, settings: Training) -> list[dict[str, Any]]:
        """The tokenizer, and the critic: clipped by itself, stepped from ``gan_start`` on."""
        out: list[dict[str, Any]] = [{"params": list(self.net.parameters()), "lr": settings.lr}]
        if self.critic is not None:
            lr = settings.lr if self.weights.gan_lr is None else self.weights.gan_lr
            own = {"alone": True, "start": self.weights.gan_start}
            out.append({"params": list(self.critic.parameters()), "lr": lr, **own})
        return out


def tokenizer_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of what a trainer saves, the tokenizer's own, by its own names: what goes into ``checkpoint/``."""
    return {name.removeprefix(NET): tensor for name, tensor in tensors.items() if name.startswith(NET)}
