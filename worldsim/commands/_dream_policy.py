"""A LeRobot policy from its folder, acting on imagined frames: its own pre-processor, cameras, state and post-processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from worldsim.core import registry
from worldsim.core.errors import UserError, did_you_mean
from worldsim.core.files import read_json
from worldsim.core.types import CameraInfo, DatasetCard, Episode, FrameStream
from worldsim.data.transforms import Cover
from worldsim.latent_actions import Options
from worldsim.latent_actions._policy import PolicyLatents
from worldsim.lerobot_policy import checkpoint as checkpoints


class DreamPolicy:
    """``core.protocols.Policy`` over a saved policy; many of them share one network.

    Frames are resized to what the policy was trained on. Its plan is executed as on the robot: ``n_action_steps`` rows, then
    it looks again.
    """

    def __init__(self, network: PolicyLatents, sizes: Mapping[str, tuple[int, int]]) -> None:
        self.network, self.sizes = network, sizes
        self.looks_back = network.observations.deltas != (0,)
        self.dream = "dream"

    def reset(self, seed: int | None = None) -> None:
        self.dream = f"dream {seed}"  # the noise of policies that sample follows from it

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """float32 ``[K, A]`` in physical units."""
        frames = {
            name: FrameStream.of(Cover(*self.sizes[name]).forward(view) if name in self.sizes else view)
            for name, view in observation["frames"].items()
        }
        episode = Episode(self.dream, 0, "the dream", 0.0, frames, states=observation.get("states"))
        episode.instruction = observation["task"] or None
        (plans,) = self.network.plans(episode, np.array([episode.num_frames - 1]))
        with torch.no_grad():
            rows = self.network.loaded.postprocessor(plans.chunks)
        return rows[0, : self.network.chunk].float().cpu().numpy()


def load(folder: str, device: str, seed: int) -> PolicyLatents:
    """The policy in ``folder``, by the type that its config names.

    Raises:
        UserError: no policy there, or one of a type that is not known here.
    """
    config = read_json(checkpoints.find(folder) / checkpoints.CONFIG)
    kind = str(config.get("type")) if isinstance(config, dict) else "?"
    known = [name for name in registry.names("latent_actions") if hasattr(registry.get("latent_actions", name), "KIND")]
    if kind not in known:
        raise UserError(
            f"--actions policy:{folder}: a policy of type '{kind}' is not known here{did_you_mean(kind, known)}; "
            f"there are {', '.join(known)}",
            "worldsim models list",
        )
    return registry.get("latent_actions", kind).create(str(folder), None, device, Options(seed=seed, batch=1))


def sizes_of(network: PolicyLatents, card: DatasetCard, cameras: list[str]) -> dict[str, tuple[int, int]]:
    """Camera -> (height, width) that the policy wants it in; cameras whose size it adapts itself are left out.

    Raises:
        UserError: the policy sees a camera that the dream does not show, or reads what no dataset has.
    """
    observations, images = network.observations, network.checkpoint.images()
    shown = {name: CameraInfo(name, 0, 0) for name in cameras}
    found = {observations.camera(feature, shown): network.checkpoint.shape(feature)[1:] for feature in images}
    sizes = {name: (height, width) for name, (height, width) in found.items()}
    as_seen = tuple(CameraInfo(name, *sizes.get(name, (0, 0))) for name in cameras)
    observations.check(replace(card, cameras=as_seen))
    return sizes if observations.fixed_size else {}


def crop_note(sizes: Mapping[str, tuple[int, int]], height: int, width: int) -> str | None:
    """Says that the policy sees less than it was trained on, where the dream's frames have another shape."""
    for name, (tall, wide) in sizes.items():
        if abs(height * wide - width * tall) > max(tall, wide):
            return (
                f"the policy was trained on camera '{name}' as {tall}x{wide}; the dream's {height}x{width} are cut to that "
                "shape before it sees them"
            )
    return None
