"""The critic of adversarial training: is this patch of pixels a photograph, or was it decoded?

# source: the discriminator of Paella (dome272/Paella, vqgan), which RLVR-World uses: strided convolutions with spectral
# norm, instance norm, leaky ReLU 0.2
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


class Critic(nn.Module):
    """Pictures in 0 … 1 ``[B, 3, H, W]`` -> one score per patch ``[B, 1, h, w]``; higher is more real.

    Args:
        width: channels of the last layers. depth: layers, each halving the size; fewer where the picture is too small.
        side: the picture's smaller side.
    """

    def __init__(self, width: int, depth: int, side: int) -> None:
        super().__init__()
        depth = max(2, min(depth, side.bit_length() - 2))  # at least 2x2 are left, which instance norm needs
        narrow = max(depth - 3, 3)
        channels = [max(1, width >> max(narrow - level, 0)) for level in range(depth)]
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(zip([3, *channels], channels)):
            layers.append(spectral_norm(nn.Conv2d(before, after, 3, stride=2, padding=1)))
            layers += [nn.InstanceNorm2d(after)] if level else []
            layers.append(nn.LeakyReLU(0.2))
        self.body = nn.Sequential(*layers)
        self.score = nn.Conv2d(channels[-1], 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.score(self.body(pictures))


def critic_loss(critic: Critic, real: Tensor, fake: Tensor, penalty: float) -> Tensor:
    """Hinge loss, and a pull of the slope at real pictures towards 1 (fp32). ``fake`` must be detached."""
    real = real.detach().requires_grad_(penalty > 0)
    with torch.enable_grad():
        score = critic(real)
        loss = (F.relu(1 - score) + F.relu(1 + critic(fake))).mean()
        if not penalty:
            return loss
        (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
    return loss + penalty * (slope.flatten(1).norm(dim=1) - 1).square().mean()


def fooling_loss(critic: Critic, fake: Tensor) -> Tensor:
    """What the decoder is told by the critic, whose own weights get no gradient from it."""
    for parameter in critic.parameters():
        parameter.requires_grad_(False)
    loss = -critic(fake).mean()
    for parameter in critic.parameters():
        parameter.requires_grad_(True)
    return loss
