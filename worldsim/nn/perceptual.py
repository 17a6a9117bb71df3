"""A perceptual distance that needs no download: fixed filters over a pyramid, differentiable, the same on every machine.

It asks, at several scales, whether two pictures agree in colour, in edges and in local contrast. A blurred picture loses
edges and contrast, which a mean squared error hardly sees; a picture with the right texture a pixel away keeps its contrast.
Not a learned metric, and not on LPIPS's scale.
# source: the parts are those of Wang, Simoncelli & Bovik 2003 ("Multi-scale structural similarity": pyramid, contrast) and
# Xue et al. 2014 ("Gradient magnitude similarity deviation": masked differences of gradients); the sum is this project's own
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

LUMINANCE = (0.299, 0.587, 0.114)
"""# source: ITU-R BT.601"""
SCALES = 4
LEAST_SIDE = 8
"""A scale whose smaller side would have fewer pixels is left out."""
COLOUR, EDGES, CONTRAST = 1.0, 0.5, 0.5
"""Weights of the three parts."""
MASK = 0.02
"""Differences of edges count relative to the edges that are there, but noise below about this much does not."""

TINY = 1e-12
"""Keeps the slope of a square root finite at 0."""


def perceptual(pred: Tensor, truth: Tensor) -> Tensor:
    """Distance of each pair: 0 for equal pictures, never negative, symmetric, always below 3.

    Black against white is 1, blue against yellow 1.8 (all colour, no edge); noise against grey, which differs in every edge
    and in contrast, about 0.9.

    Args:
        pred, truth: float ``[B, 3, H, W]`` in 0 … 1, H and W at least 8. Gradients flow to both; fp32 inside.

    Returns:
        fp32 ``[B]``: the mean over scales of the weighted sum of the three parts.
    """
    with torch.autocast(pred.device.type, enabled=False):
        a, b = _opponent(pred.float()), _opponent(truth.float())
        total, scales = a.new_zeros(a.shape[0]), 0
        for _ in range(SCALES):
            total, scales = total + _one_scale(a, b), scales + 1
            if min(a.shape[-2:]) < 2 * LEAST_SIDE:
                break
            a, b = avg_pool2d(a, 2), avg_pool2d(b, 2)
        return total / scales


def _opponent(rgb: Tensor) -> Tensor:
    """Luminance and two colour differences (red against green, blue against yellow), each of range 1, ``[B, 3, H, W]``."""
    red, green, blue = rgb.unbind(1)
    light = sum(weight * channel for weight, channel in zip(LUMINANCE, (red, green, blue)))
    return torch.stack([light, (red - green) / 2, (blue - (red + green) / 2) / 2], 1)  # type: ignore[list-item]


def _one_scale(a: Tensor, b: Tensor) -> Tensor:
    """The three parts at one scale, ``[B]``."""
    colour = (a - b).abs().sum(1).mean((1, 2))
    light_a, light_b = a[:, :1], b[:, :1]
    edges = _masked(_gradients(light_a), _gradients(light_b))
    contrast = _masked(_deviation(light_a), _deviation(light_b))
    return COLOUR * colour + EDGES * edges + CONTRAST * contrast


def _gradients(light: Tensor) -> Tensor:
    """Forward differences to the right and downwards, ``[B, 2, H, W]``; nothing leaves the picture."""
    right = pad(light[..., :, 1:] - light[..., :, :-1], (0, 1))
    down = pad(light[..., 1:, :] - light[..., :-1, :], (0, 0, 0, 1))
    return torch.cat([right, down], 1)


def _deviation(light: Tensor) -> Tensor:
    """Standard deviation in 3 x 3 pixels, ``[B, 1, H, W]``."""
    mean = _blur(light)
    return (_blur((light - mean).square()) + 1e-8).sqrt()


def _blur(x: Tensor) -> Tensor:
    """Mean over 3 x 3 pixels, the border repeated."""
    return avg_pool2d(pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _masked(a: Tensor, b: Tensor) -> Tensor:
    """How different two maps are beside how strong they are there, 0 … 1 in the mean, ``[B]``."""
    difference = ((_blur((a - b).square().sum(1, keepdim=True)) + TINY).sqrt() - TINY**0.5).clamp_min(0)
    strength = _blur((a.square() + b.square()).sum(1, keepdim=True))
    return (difference / (2 * strength + MASK**2).sqrt()).mean((1, 2, 3))
