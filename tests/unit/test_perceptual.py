"""The built-in perceptual distance: its extremes, and that it sees what a squared error does not."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import avg_pool2d, pad

from worldsim.nn.perceptual import perceptual


def textured(count: int = 2, side: int = 48, seed: int = 0) -> torch.Tensor:
    """Soft blobs with some fine texture, in 0 … 1."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.nn.functional.interpolate(torch.rand(count, 3, 6, 6, generator=draw), (side, side), mode="bicubic")
    return (0.2 + 0.6 * coarse.clamp(0, 1) + 0.1 * (torch.rand(count, 3, side, side, generator=draw) - 0.5)).clamp(0, 1)


def blurred(x: torch.Tensor) -> torch.Tensor:
    return avg_pool2d(pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1)


def test_equal_pictures_are_at_zero_and_nothing_is_below():
    x = textured()
    assert torch.equal(perceptual(x, x), torch.zeros(2))
    for other in (x.flip(-1), 1 - x, torch.full_like(x, 0.5), x + 1e-4):
        assert (perceptual(x, other) > 0).all()


def test_symmetric_one_value_per_pair_and_independent_of_the_batch():
    x, y = textured(3), textured(3, seed=1)
    both = perceptual(x, y)
    assert both.shape == (3,)
    assert torch.allclose(both, perceptual(y, x))
    assert torch.allclose(both[1], perceptual(x[1:2], y[1:2])[0])


def test_known_values():
    black, white = torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)
    assert perceptual(black, white).item() == pytest.approx(1.0)  # all colour: there is no edge and no contrast
    primary = {
        name: torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 16, 16)
        for name, rgb in (("blue", (0.0, 0.0, 1.0)), ("yellow", (1.0, 1.0, 0.0)), ("grey", (0.5, 0.5, 0.5)))
    }
    assert perceptual(primary["blue"], primary["yellow"]).item() == pytest.approx(0.886 - 0.114 + 1.0, abs=1e-5)
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert 0.5 < perceptual(noise, torch.full_like(noise, 0.5)).item() < 1.5


def test_blur_costs_more_than_a_change_of_light_of_the_same_squared_error():
    x = textured()
    soft = blurred(x)
    shift = (soft - x).square().mean().sqrt()
    brighter = x + shift
    assert (brighter - x).square().mean() == pytest.approx((soft - x).square().mean().item(), rel=1e-4)
    assert (perceptual(soft, x) > 1.5 * perceptual(brighter, x)).all()


def test_worse_is_further():
    x = textured()
    draw = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    steps = [perceptual(x + amount * draw, x).mean().item() for amount in (0.0, 0.01, 0.03, 0.1, 0.3)]
    assert steps == sorted(steps)
    shifts = [perceptual(x.roll(by, -1), x).mean().item() for by in (0, 1, 2, 4)]
    assert shifts == sorted(shifts)


def test_gradients_are_finite_and_lead_back():
    truth = textured(1, 32)
    pred = truth.clone().requires_grad_(True)
    perceptual(pred, truth).sum().backward()  # at the optimum itself
    assert torch.isfinite(pred.grad).all()
    guess = torch.full_like(truth, 0.5).requires_grad_(True)
    optimiser = torch.optim.Adam([guess], 0.02)
    first = perceptual(guess, truth).item()
    for _ in range(60):
        optimiser.zero_grad()
        perceptual(guess, truth).sum().backward()
        optimiser.step()
    assert perceptual(guess, truth).item() < 0.5 * first


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (33, 47), (64, 64)])
def test_any_size_from_eight_pixels(size):
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(perceptual(x, 1 - x)).all()
