"""The bundled linear VAE: causal, zero for what stands still, and as good as a linear code of its size can be."""

from __future__ import annotations

import pytest
import torch

from worldsim.encoders.patch_vae import PatchVAE
from worldsim.encoders.wan_vae import WanVAE


def videos(count: int = 6, frames: int = 9, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(count, 3, 1, size, size, generator=generator) - 0.5
    change = 0.1 * torch.randn(count, 3, frames - 1, size, size, generator=generator)
    return torch.cat([start, start + change.cumsum(2) * torch.linspace(0.2, 1, 3).view(1, 3, 1, 1, 1)], dim=2)


def fitted(z_dim: int, patch: int = 2) -> PatchVAE:
    vae = PatchVAE(z_dim=z_dim, patch=patch, scale_factor_spatial=patch)
    vae.fit([videos()])
    return vae.eval().requires_grad_(False)


def test_latent_k_depends_on_frames_up_to_4k_and_no_later_one():
    vae, video = fitted(12), videos()
    before = vae.encode(video).latent_dist.mode()
    for t in range(1, 9):
        changed = video.clone()
        changed[:, :, t] += 0.1
        moved = (vae.encode(changed).latent_dist.mode() - before).abs().amax((0, 1, 3, 4)) > 1e-6
        assert moved.nonzero().flatten().tolist() == [(t + 3) // 4]
    changed = video.clone()
    changed[:, :, 0] += 0.1
    assert ((vae.encode(changed).latent_dist.mode() - before).abs().amax((0, 1, 3, 4)) > 1e-6).all()


def test_a_picture_that_stands_still_is_exactly_zero_after_the_first_latent():
    vae = fitted(12)
    still = videos()[:, :, :1].expand(-1, -1, 9, -1, -1)
    latents = vae.encode(still).latent_dist.mode()
    assert latents[:, :, 1:].abs().max() == 0
    assert latents[:, :, 0].abs().max() > 0
    decoded = vae.decode(latents).sample
    assert torch.equal(decoded[:, :, :1].expand_as(decoded), decoded)


def test_a_code_of_full_rank_loses_nothing():
    vae, first = fitted(12), videos()[:, :, :1]  # 2 x 2 x 3 numbers
    back = vae.decode(vae.encode(first).latent_dist.mode()).sample
    torch.testing.assert_close(back, first.clamp(-1, 1), atol=2e-4, rtol=0)


def test_more_channels_than_a_patch_has_numbers_are_refused():
    with pytest.raises(ValueError, match="z_dim = 13"):
        PatchVAE(z_dim=13, patch=2)


@pytest.mark.parametrize("z_dim", [4, 10])
def test_the_error_is_the_sum_of_the_dropped_eigenvalues(z_dim):
    """Eckart-Young: no linear code of that size does better on what it was fitted to."""
    vae, video = fitted(z_dim), videos()
    cells = vae._patches(video[:, :, 1:] - video[:, :, :1])
    rows = cells.transpose(0, 1).flatten(1).double()
    dropped = torch.linalg.eigvalsh(rows @ rows.T / rows.shape[1])[:-z_dim].sum()
    code = vae.change.encode(cells).chunk(2, dim=1)[0]
    error = (vae.change.decode(code) - cells).double().square().sum(1).mean()
    assert float(error) == pytest.approx(float(dropped), rel=1e-4)


def test_latents_are_of_unit_size_and_sizes_are_the_wan_ones(tmp_path):
    vae = fitted(12)
    latents = vae.encode(videos()).latent_dist.mode()
    assert latents.shape == (6, 12, 3, 4, 4)
    assert 0.5 < latents[:, :, 1:].square().mean().sqrt() < 2
    vae.save_pretrained(tmp_path / "vae")
    wrapped = WanVAE.load(tmp_path)
    assert isinstance(wrapped.module, PatchVAE)
    assert (wrapped.channels, wrapped.stride) == (12, 2)
    frames = ((videos().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()
    assert wrapped.decode(wrapped.encode(frames)).shape == frames.shape
