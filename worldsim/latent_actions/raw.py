"""The recorded actions themselves, in physical units: the plain alternative to a policy's latents."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.registry import register
from worldsim.core.types import ActionSpec, DatasetCard, Episode
from worldsim.data.windows import require_rows
from worldsim.latent_actions import Options

CARD = {"title": "Recorded actions, as they are", "source": "worldsim", "size": "no weights", "license": "Apache-2.0"}


@register("latent_actions")
class Raw:
    """Gives each episode's own action rows, in the source's dtype."""

    READS_POLICY: ClassVar[bool] = False

    @classmethod
    def create(cls, policy: str | None, checkpoint: str | None, device: str, options: Options | None = None) -> Raw:
        """
        Raises:
            UserError: a policy, a checkpoint or a policy's option was named; recorded actions come from none.
        """
        options = options or Options()
        frame = options.mode if options.mode != "chunk" else None
        given = {"policy": policy, "checkpoint": checkpoint, "mode": frame, "compat": options.compat}
        for key, value in given.items():
            if value is not None:
                raise UserError(
                    f"{key} = {value}: the extractor 'raw' reads the recorded actions and no weights",
                    "worldsim extract-latents DATA --extractor act --policy DIR",
                )
        return cls()

    def params(self) -> dict[str, Any]:
        return {}

    def spec(self, card: DatasetCard) -> ActionSpec:
        """The dataset's own.

        Raises:
            UserError: the dataset has no actions.
        """
        if card.actions is None:
            raise UserError(f"the dataset {card.name} has no actions", "worldsim doctor DATA")
        return card.actions

    def extract(self, episode: Episode) -> np.ndarray:
        """``[T, A]`` or ``[T - 1, A]``, as recorded.

        Raises:
            BadEpisode: no actions, a wrong number of rows, or a number that is not finite.
        """
        if episode.actions is None:
            raise BadEpisode(episode.id, f"{episode.source} has no actions")
        require_rows(episode.id, episode.num_frames, len(episode.actions))
        if not np.isfinite(episode.actions).all():
            raise BadEpisode(episode.id, f"{episode.source}: an action is not a finite number")
        return episode.actions

    @classmethod
    def tiny(cls) -> Raw:
        return cls()
