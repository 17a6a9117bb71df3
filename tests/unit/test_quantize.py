"""FSQ is a bijection over its codes, in fp32, with gradients that pass straight through."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldsim.nn.quantize import FSQ, Centre

RELEASED = (7, 5, 5, 5, 5)
LEVELS = [RELEASED, (8, 6, 5), (8, 5, 5, 5), (3, 2), (2,)]


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_comes_back(levels):
    fsq = FSQ(levels)
    every = torch.arange(fsq.codes)
    codes = fsq.decode(every)
    assert fsq.codes == np.prod(levels)
    assert codes.abs().max() <= 1
    assert len(codes.unique(dim=0)) == fsq.codes
    assert torch.equal(fsq.index_of(codes), every)


def test_the_released_codes_and_their_order():
    fsq = FSQ(RELEASED)
    assert fsq.codes == 4375
    assert fsq.basis.tolist() == [1, 7, 35, 175, 875]
    # the first dimension counts fastest, from -1 upwards
    assert fsq.decode(torch.tensor([0, 1, 6, 7, 4374])).tolist() == [
        [-1.0, -1.0, -1.0, -1.0, -1.0],
        [pytest.approx(-2 / 3), -1.0, -1.0, -1.0, -1.0],
        [1.0, -1.0, -1.0, -1.0, -1.0],
        [-1.0, -0.5, -1.0, -1.0, -1.0],
        [1.0, 1.0, 1.0, 1.0, 1.0],
    ]


@pytest.mark.parametrize("levels", LEVELS)
def test_rounding_is_the_papers(levels):
    """Appendix A.1 of arXiv:2309.15505, in numpy and double precision."""
    z = torch.randn(4000, len(levels), generator=torch.Generator().manual_seed(0)) * 2
    count = np.array(levels, float)
    half, offset = (count - 1) * (1 + 1e-3) / 2, np.where(count % 2 == 0, 0.5, 0.0)
    rounded = np.round(np.tanh(z.double().numpy() + np.arctanh(offset / half)) * half - offset)
    index = ((rounded + count // 2) * np.cumprod([1, *levels[:-1]])).sum(-1)
    codes, found = FSQ(levels)(z)
    assert (found.numpy() == index).mean() > 0.999  # single precision may round a tie differently
    same = found.numpy() == index
    assert np.allclose(codes.numpy()[same], (rounded / (count // 2))[same], atol=1e-6)
    assert torch.allclose(FSQ(levels).decode(found), codes, atol=1e-6)


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8])
def test_all_levels_can_be_reached_and_none_beyond(level):
    z = torch.linspace(-8, 8, 20001)[:, None]
    index = FSQ((level,)).encode(z)
    assert index.unique().tolist() == list(range(level))
    assert (index.diff() >= 0).all()


def test_gradients_pass_through_rounding():
    z = torch.tensor([[0.3, -0.2]], requires_grad=True)
    FSQ((5, 5))(z)[0].sum().backward()
    slope = (1 - torch.tanh(z.detach()) ** 2) * (4 * 1.001 / 2) / 2  # of the bound alone
    assert torch.allclose(z.grad, slope)


def test_half_precision_gives_the_codes_of_single_precision():
    fsq = FSQ(RELEASED)
    z = torch.randn(2000, 5, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fsq.encode(z), fsq.encode(z.clone()))
    half = z.bfloat16()
    codes, index = fsq(half)
    assert codes.dtype == torch.bfloat16
    assert torch.equal(index, fsq.encode(half.float()))


@pytest.mark.parametrize("levels", [(), (1, 5)])
def test_senseless_levels_are_refused(levels):
    with pytest.raises(ValueError, match="at least 2 levels"):
        FSQ(levels)


def test_centre_keeps_codes_from_collapsing():
    """Numbers far off and in a narrow range all become one code; centred, they use most of them."""
    z = 3 + 0.05 * torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    fsq, centre = FSQ((8, 6, 5)), Centre(3)
    for _ in range(400):
        centred = centre(z)
    assert len(fsq.encode(z).unique()) == 1
    assert len(fsq.encode(centred).unique()) > 200
    centre.eval()
    assert torch.allclose(centre(z), centred, atol=1e-2)
