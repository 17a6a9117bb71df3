"""Latent actions: what stands for an action when a world model is driven. Each file makes one kind.

Rows belong to frames, so windows cut them as they cut recorded actions.

An extractor is a class with

- ``READS_POLICY``: whether a policy is fetched for it;
- ``create(policy, checkpoint, device, options)``: an instance; refuses what it cannot use;
- ``params() -> dict``: JSON-able, part of its column's fingerprint;
- ``spec(card) -> ActionSpec``: what a row means; refuses a dataset that it cannot read;
- ``extract(episode) -> [T, D]`` or ``[T - 1, D]``: rows in the source's order;
- ``tiny()``: an instance that needs no weights and no download.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from worldsim.core.types import ActionSpec, DatasetCard, Episode

Mode = Literal["chunk", "frame"]


@dataclass(frozen=True)
class Options:
    """How a policy is asked for its latents; an extractor without a policy takes the defaults only.

    Attributes:
        mode: ``chunk`` observes once per executed chunk, as the policy would on the robot; ``frame`` observes every frame.
        compat: ``worldeval`` repeats WorldEval's numbers: un-normalised inputs, whole chunks.
        cameras: the policy's camera name -> the dataset's, where the names differ.
        batch: observations per forward pass.
        seed: of the noise that diffusion and flow policies start from.
    """

    mode: Mode = "chunk"
    compat: Literal["worldeval"] | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    batch: int = 16
    seed: int = 0


class LatentActionExtractor(Protocol):
    """An episode in, one row per frame out."""

    def params(self) -> dict[str, Any]: ...

    def spec(self, card: DatasetCard) -> ActionSpec: ...

    def extract(self, episode: Episode) -> np.ndarray:
        """Rows ``[T, D]`` or ``[T - 1, D]``, finite.

        Raises:
            BadEpisode: the episode cannot give them.
        """
        ...
