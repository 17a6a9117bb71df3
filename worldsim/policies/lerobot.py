"""Any saved LeRobot policy (ACT, diffusion, SmolVLA, pi0, a plugin's): its own pre-processor, network and post-processor."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from worldsim.core.errors import UserError
from worldsim.core.protocols import Environment
from worldsim.core.registry import register
from worldsim.core.types import ActionSpec, PolicyNeeds
from worldsim.data.transforms import Cover
from worldsim.lerobot_policy import checkpoint as checkpoints
from worldsim.lerobot_policy.checkpoint import PIPELINES, STATE, Checkpoint, camera_name
from worldsim.lerobot_policy.loading import Loaded
from worldsim.lerobot_policy.loading import load as build
from worldsim.lerobot_policy.quirks import LANGUAGE, Quirks, running

CARD = {
    "title": "A LeRobot policy from its folder: ACT, diffusion, SmolVLA, pi0, any PreTrainedPolicy",
    "source": "https://github.com/huggingface/lerobot",
    "size": "the policy's own folder",
    "license": "Apache-2.0; the weights' own",
}
QUANTILES = ("q01", "q99")


@register("policies")
class LeRobot:
    """``core.protocols.LearnedPolicy`` over a saved policy.

    A policy that looks at one observation gives ``n_action_steps`` rows of ``predict_action_chunk`` at once. One that looks
    back (diffusion) or blends its chunks (ACT's temporal ensembling) must see every frame: it gives one row per call
    through ``select_action``, which keeps its queues. Either way the rows are those of lerobot-eval. Noise that a policy
    draws follows from (seed, call number) alone.

    Args:
        task: the task in words, for policies that read it; an observation's own ``task`` wins.
    """

    def __init__(self, checkpoint: Checkpoint, loaded: Loaded, device: str = "cpu", task: str = "") -> None:
        self.checkpoint, self.loaded, self.device, self.task = checkpoint, loaded, device, task
        config = checkpoint.config
        unreadable = checkpoint.unreadable()
        if unreadable:
            raise UserError(
                f"the policy {checkpoint.name} reads {unreadable[0]}, which observations of cameras and a state do not have"
            )
        self.features = {camera_name(key): key for key in map(checkpoint.received_as, checkpoint.images())}
        self.sizes = {
            camera_name(checkpoint.received_as(key)): (checkpoint.shape(key)[1], checkpoint.shape(key)[2])
            for key in checkpoint.images()
        }
        self.chunk = int(config.get("n_action_steps") or 1)
        looks_back = int(config.get("n_obs_steps") or 1) > 1
        self.stepwise = looks_back or config.get("temporal_ensemble_coeff") is not None or "n_action_steps" not in config
        self.needs = _needs(checkpoint, self.sizes)
        self.reset()

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu", *, task: str = "") -> Self:
        """
        Raises:
            UserError: no policy there, a damaged one, or one that needs a package.
        """
        checkpoint, quirks = checkpoints.read(str(folder)), Quirks()
        loaded = build(checkpoint, device, prepare=quirks.prepare, rename_keys=quirks.rename_keys, pipelines=True)
        return cls(checkpoint, loaded, device, task)

    @classmethod
    def tiny(cls, env: Environment) -> Self:
        """A random ACT of LeRobot's own class that sees what ``env`` shows, its actions around the middle of the box."""
        from worldsim.policies._lerobot_twin import act_for

        return cls(*act_for(env))

    def reset(self, seed: int | None = None) -> None:
        self.seed, self.turn = 0 if seed is None else seed, 0
        self.loaded.policy.reset()

    def fork(self) -> LeRobot:
        """The same weights; a network that keeps queues is copied around them."""
        twin, network = copy.copy(self), self.loaded.policy
        if self.stepwise:
            weights = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
            twin.loaded = dataclasses.replace(self.loaded, policy=copy.deepcopy(network, weights))
        twin.reset()
        return twin

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """float32 ``[K, A]`` in physical units.

        Raises:
            UserError: the observation lacks a camera or the state.
        """
        batch = self.loaded.preprocessor(self.batch(observation))
        policy = self.loaded.policy
        with torch.no_grad(), running(str(self.checkpoint.config["type"])), self._noise():
            if self.stepwise:
                rows = policy.select_action(batch)[:, None]
            else:
                policy.reset()
                rows = policy.predict_action_chunk(batch)[:, : self.chunk]
            rows = self.loaded.postprocessor(rows)
        return rows[0].float().cpu().numpy()

    def batch(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """One observation as the policy's pipeline receives it: images float32 ``[1, 3, H, W]`` in 0..1."""
        out: dict[str, Any] = {"task": [observation.get("task") or self.task]}
        for camera, feature in self.features.items():
            out[feature] = self._image(camera, observation["pixels"])
        if self.checkpoint.state_dim() is not None:
            state = np.asarray(observation["agent_pos"], np.float32)
            out[self.checkpoint.received_as(STATE)] = torch.from_numpy(state.copy())[None]
        return out

    def _image(self, camera: str, pixels: Mapping[str, np.ndarray]) -> torch.Tensor:
        if camera not in pixels:
            have = ", ".join(sorted(pixels)) or "none"
            raise UserError(f"the policy {self.checkpoint.name} sees a camera '{camera}', the observation has {have}")
        frame = np.asarray(pixels[camera])
        if frame.shape[:2] != self.sizes[camera] and self.checkpoint.config["type"] not in LANGUAGE:
            frame = Cover(*self.sizes[camera]).forward(frame[None])[0]
        return (torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / 255).contiguous()

    def _noise(self) -> Any:
        """The global generator for one call, set by (seed, call number) and put back afterwards."""
        self.turn += 1
        return _seeded(np.random.SeedSequence([self.seed, self.turn]).generate_state(1)[0], self.device)


class _seeded:
    def __init__(self, seed: int, device: str) -> None:
        self.fork = torch.random.fork_rng(devices=[] if device == "cpu" else None)
        self.seed = int(seed)

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *exc: Any) -> None:
        self.fork.__exit__(*exc)


def _needs(checkpoint: Checkpoint, sizes: dict[str, tuple[int, int]]) -> PolicyNeeds:
    """A LeRobot folder names neither its state entries, nor its action entries, nor its rate: those stay unknown."""
    dim = int(checkpoint.config["output_features"]["action"]["shape"][0])
    states = tuple(f"state_{k}" for k in range(checkpoint.state_dim() or 0))
    low, high = (_quantile(checkpoint, name) for name in QUANTILES)
    return PolicyNeeds(sizes, states, ActionSpec.unknown(dim, 0.0), 0.0, low, high)


def _quantile(checkpoint: Checkpoint, name: str) -> np.ndarray | None:
    """Of the training actions, from the post-processor's own statistics; None where they are not there."""
    from safetensors import safe_open

    from worldsim.core.files import read_json

    if checkpoint.folder is None:
        return None
    for step in read_json(checkpoint.folder / PIPELINES[1]).get("steps", []):
        if step.get("state_file"):
            with safe_open(checkpoint.folder / step["state_file"], framework="numpy") as file:
                if f"action.{name}" in file.keys():  # noqa: SIM118 (no mapping)
                    return np.asarray(file.get_tensor(f"action.{name}"), np.float32).reshape(-1)
    return None
