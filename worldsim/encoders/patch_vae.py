"""A causal video VAE whose maps are linear: small enough to travel in the package, fitted in closed form.

Latent 0 holds frame 0. Latent k >= 1 holds what frames 4k - 3 … 4k differ from frame 0 by, so it depends on no later frame,
and a picture that stands still is zero. Patches of 8 x 8 pixels (x 4 frames) are projected onto their principal components:
for linear maps this is the optimum of the VAE's objective.
# source: Lucas et al. 2019, "Don't Blame the ELBO!" (linear VAEs and probabilistic PCA); Tipping & Bishop 1999
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

PACK = 4
COLOURS = 3


class PatchVAE(ModelMixin, ConfigMixin):
    """Videos in -1 … 1, ``[B, 3, 1 + 4k, H, W]`` <-> latents ``[B, z, 1 + k, H / patch, W / patch]``.

    Has the face of diffusers' video VAEs: ``encode(x).latent_dist``, ``decode(z).sample``, a config with
    ``latents_mean`` and ``latents_std``.

    Args:
        z_dim: latent channels, z.
        patch: pixels per latent cell, each way.
        latents_mean, latents_std: per channel; the maps are scaled so that these are 0 and 1.
        scale_factor_spatial, scale_factor_temporal: pixels and frames per latent cell.
    """

    @register_to_config
    def __init__(
        self,
        z_dim: int = 64,
        patch: int = 8,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        scale_factor_spatial: int = 8,
        scale_factor_temporal: int = PACK,
    ) -> None:
        super().__init__()
        still = COLOURS * patch * patch
        if z_dim > still:
            raise ValueError(f"z_dim = {z_dim} is more than the {still} numbers of a patch")
        self.register_to_config(latents_mean=latents_mean or [0.0] * z_dim, latents_std=latents_std or [1.0] * z_dim)
        self.still = LinearCode(still, z_dim)
        self.change = LinearCode(PACK * still, z_dim)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:
        """
        Args:
            x: ``[B, 3, 1 + 4k, H, W]`` in -1 … 1.
        """
        first, rest = x[:, :, :1], x[:, :, 1:]
        parts = [self.still.encode(self._patches(first))]
        if rest.shape[2]:
            parts.append(self.change.encode(self._patches(rest - first)))
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(torch.cat(parts, dim=2)))

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput:
        """Latents -> ``[B, 3, 1 + 4k, H, W]``, clamped to -1 … 1."""
        first = self._pictures(self.still.decode(z[:, :, :1]), 1)
        parts = [first]
        if z.shape[2] > 1:
            parts.append(first + self._pictures(self.change.decode(z[:, :, 1:]), PACK))
        return DecoderOutput(sample=torch.cat(parts, dim=2).clamp(-1.0, 1.0))

    def _patches(self, video: Tensor) -> Tensor:
        """``[B, 3, T, H, W]`` -> ``[B, n, T', h, w]``: T' = T for a single frame, else T / 4."""
        batch, _, frames, height, width = video.shape
        pack = PACK if frames > 1 else 1
        groups = video.transpose(1, 2).reshape(batch * (frames // pack), pack * COLOURS, height, width)
        cells = pixel_unshuffle(groups, self.config.patch)
        return cells.unflatten(0, (batch, frames // pack)).transpose(1, 2)

    def _pictures(self, cells: Tensor, pack: int) -> Tensor:
        """The inverse of :meth:`_patches`."""
        batch, _, latents = cells.shape[:3]
        groups = pixel_shuffle(cells.transpose(1, 2).flatten(0, 1), self.config.patch)
        return groups.reshape(batch, latents * pack, COLOURS, *groups.shape[2:]).transpose(1, 2)

    @torch.no_grad()
    def fit(self, videos: Iterable[Tensor]) -> None:
        """Set every weight from the covariance of patches.

        Args:
            videos: each ``[B, 3, 1 + 4k, H, W]`` in -1 … 1, k >= 1.
        """
        still, change = Moments(), Moments()
        for video in videos:
            still.add(self._patches(video[:, :, :1]))
            change.add(self._patches(video[:, :, 1:] - video[:, :, :1]))
        self.still.set(still, centred=True)
        self.change.set(change, centred=False)


class LinearCode(nn.Module):
    """``n`` numbers of a patch <-> ``z`` of its code, on ``[B, n, T', h, w]``; the posterior's variance is learned."""

    def __init__(self, size: int, z_dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(size))
        self.analysis = nn.Parameter(torch.zeros(z_dim, size))
        self.synthesis = nn.Parameter(torch.zeros(size, z_dim))
        self.log_variance = nn.Parameter(torch.zeros(z_dim))

    def encode(self, cells: Tensor) -> Tensor:
        """``[B, 2 z, T', h, w]``: mean, then log-variance."""
        code = torch.einsum("zn,bnthw->bzthw", self.analysis, cells - self.mean.view(1, -1, 1, 1, 1))
        spread = self.log_variance.view(1, -1, 1, 1, 1).expand_as(code)
        return torch.cat([code, spread], dim=1)

    def decode(self, code: Tensor) -> Tensor:
        return torch.einsum("nz,bzthw->bnthw", self.synthesis, code) + self.mean.view(1, -1, 1, 1, 1)

    def set(self, moments: Moments, centred: bool) -> None:
        """Principal components of ``moments``.

        Component c has standard deviation proportional to the fourth root of its variance, 1 in the mean of squares over
        all: the square root of whitening, so that fine detail is neither lost in a flow's noise nor made as loud as a
        mover. Not ``centred`` leaves the mean at zero, so that no change is exactly zero.
        """
        values, vectors = torch.linalg.eigh(moments.covariance(centred))
        values, vectors = values.flip(0), vectors.flip(1)
        z = len(self.analysis)
        kept, basis = values[:z].clamp_min(1e-12), vectors[:, :z]
        basis = basis * torch.where(basis.sum(0) < 0, -1.0, 1.0)  # eigenvectors have no sign of their own
        scale = kept**0.25 * (kept**0.5).mean().rsqrt()
        noise = values[z:].clamp_min(1e-12).mean() if len(values) > z else kept.new_tensor(1e-12)
        self.mean.copy_(moments.mean() if centred else torch.zeros_like(self.mean))
        self.analysis.copy_((basis * (scale / kept**0.5)).T.float())
        self.synthesis.copy_((basis * (kept**0.5 / scale)).float())
        self.log_variance.copy_((noise / kept * scale**2).log().float())


class Moments:
    """First and second moments of patches, fp64, added up batch by batch."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, torch.zeros(1), torch.zeros(1)

    def add(self, cells: Tensor) -> None:
        rows = cells.transpose(0, 1).flatten(1).double()
        self.count += rows.shape[1]
        self.first = self.first + rows.sum(1)
        self.second = self.second + rows @ rows.T

    def mean(self) -> Tensor:
        return self.first / self.count

    def covariance(self, centred: bool) -> Tensor:
        about = self.mean() if centred else torch.zeros_like(self.first)
        return self.second / self.count - torch.outer(about, about)
