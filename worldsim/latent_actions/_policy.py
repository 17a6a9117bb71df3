"""What every LeRobot policy's latents have in common: the numbers that enter its action head, one row per frame.

The policy sees what it saw in training: its own pre-processor, its own camera order, the same history of observations.
Its plan made at frame s owns the rows from s on; row t is the plan's entry for the action between frame t and t + 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from worldsim.core.errors import BadEpisode, UserError, again
from worldsim.core.types import ActionSpec, DatasetCard, Episode
from worldsim.latent_actions import Options
from worldsim.lerobot_policy import checkpoint as checkpoints
from worldsim.lerobot_policy.checkpoint import Checkpoint
from worldsim.lerobot_policy.loading import Loaded, load
from worldsim.lerobot_policy.observations import Observations
from worldsim.lerobot_policy.quirks import Quirks


@dataclass
class Plans:
    """What the policy intends at each of B frames.

    Attributes:
        starts: the frames, int64 ``[B]``.
        latents: what entered the action head, float32 ``[B, K, D]``; entry 0 belongs to the frame itself.
        chunks: ``predict_action_chunk``'s own output in the policy's units, ``[B, K', A]``, entry 0 likewise.
    """

    starts: np.ndarray
    latents: np.ndarray
    chunks: Tensor


class PolicyLatents:
    """Base of the extractors; a subclass names its policy and says how a chunk is asked for.

    Attributes:
        KIND: LeRobot's policy type. HEAD: the module whose input is the latent.
        CHUNK: config key of a plan's length.
        SAMPLES: whether the policy draws noise. FIXED_SIZE: whether frames must have the policy's size.
        NEEDS_TEXT: whether the policy reads the task.
    """

    READS_POLICY: ClassVar[bool] = True
    KIND: ClassVar[str]
    HEAD: ClassVar[str]
    CHUNK: ClassVar[str] = "chunk_size"
    SAMPLES: ClassVar[bool] = False
    FIXED_SIZE: ClassVar[bool] = True
    NEEDS_TEXT: ClassVar[bool] = False

    def __init__(self, checkpoint: Checkpoint, device: str, options: Options, loaded: Loaded | None = None) -> None:
        self.checkpoint, self.device, self.options = checkpoint, device, options
        self._loaded = loaded
        self.quirks = Quirks()
        self.observations = self._observations()

    def _observations(self) -> Observations:
        return Observations(
            self.checkpoint,
            self.options.cameras,
            fixed_size=self.FIXED_SIZE,
            needs_text=self.NEEDS_TEXT,
        )

    @classmethod
    def create(cls, policy: str | None, checkpoint: str | None, device: str, options: Options | None = None) -> Self:
        """
        Args:
            policy: folder of a saved policy, or an output folder of lerobot-train.

        Raises:
            UserError: no policy was named, or one that cannot be used here.
        """
        options = options or Options()
        command = f"worldsim extract-latents DATA --extractor {cls.KIND} --policy DIR"
        if checkpoint is not None:
            raise UserError(f"checkpoint = {checkpoint}: the extractor '{cls.KIND}' reads a policy", command)
        if policy is None:
            raise UserError(f"the extractor '{cls.KIND}' reads a policy, and none was named", command)
        cls.check(options)
        found = checkpoints.read(policy, cls.KIND, cls.HEAD, pipelines=options.compat is None)
        return cls(found, device, options)

    @classmethod
    def check(cls, options: Options) -> None:
        """
        Raises:
            UserError: ``compat``, where the reference knows no such policy.
        """
        if options.compat is not None:
            raise UserError(
                f"compat = {options.compat}: WorldEval's extraction code reads ACT policies, not '{cls.KIND}'",
                again(compat="null"),
            )

    @property
    def loaded(self) -> Loaded:
        """The policy, built on first use: a dry run or a finished column needs none."""
        if self._loaded is None:
            self._loaded = load(
                self.checkpoint,
                self.device,
                prepare=self.quirks.prepare,
                rename_keys=self.quirks.rename_keys,
                pipelines=self.options.compat is None,
            )
        return self._loaded

    @property
    def head(self) -> nn.Module:
        return self.loaded.policy.get_submodule(self.HEAD)

    @property
    def chunk(self) -> int:
        """Rows that one observation gives: the steps that the policy executes before it looks again."""
        return int(self.checkpoint.config["n_action_steps"])

    @property
    def batch(self) -> int:
        """Observations per forward pass."""
        return self.options.batch

    def params(self) -> dict[str, Any]:
        """``teacher_forced``: every row has seen the true picture of its own frame."""
        chunk = 1 if self.options.mode == "frame" else self.chunk
        out: dict[str, Any] = {
            "policy": self.checkpoint.digest,
            "mode": self.options.mode,
            "chunk": chunk,
            "teacher_forced": chunk == 1,
            "compat": self.options.compat,
        }
        if self.options.cameras:
            out["cameras"] = dict(sorted(self.options.cameras.items()))
        if self.SAMPLES:
            out["seed"] = self.options.seed
        return out

    def spec(self, card: DatasetCard) -> ActionSpec:
        """D numbers without unit, one row per frame.

        Raises:
            UserError: the policy cannot read such a dataset.
        """
        self.observations.check(card)
        width = self.checkpoint.width
        names = tuple(f"{self.KIND}_{i}" for i in range(width))
        return ActionSpec(names=names, units=("1",) * width, rate=card.fps)

    def extract(self, episode: Episode) -> np.ndarray:
        """float32 ``[T, D]``.

        Raises:
            BadEpisode: a camera, state or task is missing, or the policy answers with a number that is not finite.
        """
        frames = episode.num_frames
        step = 1 if self.options.mode == "frame" else self.chunk
        rows = np.empty((frames, self.checkpoint.width), np.float32)
        for plans in self.plans(episode, np.arange(0, frames, step)):
            for start, latents in zip(plans.starts.tolist(), plans.latents, strict=True):
                kept = min(step, frames - start)
                rows[start : start + kept] = latents[:kept]
        if not np.isfinite(rows).all():
            raise BadEpisode(
                episode.id, f"{episode.source}: the policy {self.checkpoint.name} gives a number that is not finite"
            )
        return rows

    def plans(self, episode: Episode, starts: np.ndarray) -> Iterator[Plans]:
        """The policy's plans at ``starts`` (int64), ``batch`` at a time. Noise depends on (seed, episode, start)."""
        for at in range(0, len(starts), self.batch):
            yield self._plan(episode, starts[at : at + self.batch])

    @torch.no_grad()
    def _plan(self, episode: Episode, starts: np.ndarray) -> Plans:
        batch = self.observations.at(episode, starts)
        generators = [torch.Generator().manual_seed(_noise_seed(self.options.seed, episode.id, s)) for s in starts.tolist()]
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            chunks = self.predict(batch, generators)
        finally:
            handle.remove()
        latents = self.aligned(seen[-1])  # a denoiser's head is called once per step; the last is the cleanest
        return Plans(starts, latents.float().cpu().numpy(), chunks)

    def predict(self, batch: dict[str, Any], generators: list[torch.Generator]) -> Tensor:
        """``predict_action_chunk`` on raw observations, ``[B, K, A]`` in the policy's units."""
        policy, batch = self.loaded.policy, self.loaded.preprocessor(batch)
        policy.reset()
        return policy.predict_action_chunk(batch, **self.noise(generators))

    def noise(self, generators: list[torch.Generator]) -> Mapping[str, Any]:
        """Further arguments of ``predict_action_chunk``."""
        return {}

    def aligned(self, latents: Tensor) -> Tensor:
        """The head's input as ``[B, K, D]`` whose entry 0 belongs to the observed frame."""
        return latents


def draw(generators: list[torch.Generator], shape: tuple[int, int], device: str) -> Tensor:
    """Standard normal noise float32 ``[B, *shape]``, each sample from its own generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)


def _noise_seed(seed: int, episode: str, start: int) -> int:
    """63 bits that depend on nothing but these three."""
    digest = hashlib.sha256(f"{seed}/{episode}/{start}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
