"""What a plugin of each shelf must be able to do. Optional powers are separate protocols, asked for with ``isinstance``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from worldsim.core.types import ActionSpec, DatasetCard, Episode, PolicyNeeds


@runtime_checkable
class EpisodeSource(Protocol):
    """A dataset opened for reading, one episode at a time."""

    card: DatasetCard

    def __len__(self) -> int: ...

    def ids(self) -> list[str]:
        """Episode ids in the source's order, without reading episodes where the format allows it."""
        ...

    def episode(self, index: int) -> Episode:
        """Episode ``index``; raises :class:`~worldsim.core.errors.BadEpisode` naming the file when it cannot be read."""
        ...

    def close(self) -> None: ...


class EpisodeWriter(Protocol):
    """A dataset opened for writing. An episode is staged under a temporary name and becomes visible on commit."""

    def has(self, index: int) -> bool:
        """Whether episode ``index`` of the source was committed by an earlier, interrupted run."""
        ...

    def stage(self, episode: Episode) -> Any:
        """Stream the episode to a temporary name and return a ticket. On any exception nothing is left behind."""
        ...

    def commit(self, ticket: Any) -> None:
        """Make a staged episode part of the dataset (atomic rename). Called in the source's order."""
        ...

    def discard(self, ticket: Any) -> None:
        """Remove a staged episode."""
        ...

    def finalize(self, card: DatasetCard) -> None:
        """Write what describes the whole dataset and close. Safe to call again after a kill."""
        ...


class Format(Protocol):
    """An on-disk dataset format. Registered as a class with these static methods."""

    @staticmethod
    def detect(path: Path) -> bool:
        """Whether ``path`` holds this format. Cheap: looks at names, never decodes."""
        ...

    @staticmethod
    def open(path: Path, **options: Any) -> EpisodeSource: ...

    @staticmethod
    def lacks(card: DatasetCard) -> str | None:
        """Why this format cannot hold such a dataset, as a sentence naming what is missing; None when it can."""
        ...

    @staticmethod
    def create(path: Path, card: DatasetCard, **options: Any) -> EpisodeWriter: ...


class WorldModel(Protocol):
    """Context frames and actions in, future frames out. Loaded with ``worldsim.world_models.load(RUN or name)``.

    Attributes:
        height, width: pixels of the frames it takes and gives.
        fps: frames per second of its frames.
        action_spec: what its action rows mean; None for a model that ignores actions.
        context_frames: frames it wants as history (it accepts 1 as well).
    """

    height: int
    width: int
    fps: float
    context_frames: int

    def rollout(self, context: Any, actions: Any, *, num_samples: int = 1, seeds: list[int] | None = None) -> Any:
        """Imagine exactly n frames for n action steps.

        Args:
            context: uint8 ``[B, T0, H, W, 3]``; its last frame is the one before the first action. T0 >= 1.
            actions: physical units, float ``[B, n, r, A]``: ``r`` source rows per video frame (``data.windows``).
            num_samples: N futures per context.
            seeds: one per context; a sample's noise depends on (its seed, its sample number, its chunk) alone.

        Returns:
            uint8 ``[B, N, n, H, W, 3]``.
        """
        ...


@runtime_checkable
class SupportsLogProb(Protocol):
    """A world model that writes futures as tokens and can say how likely each was: what GRPO improves (``worldsim.rl``).

    A response is n predicted frames as tokens, with forced tokens (actions) between them. ``P`` prompts, ``n`` samples of
    each (a group), ``Lp`` and ``Lr`` tokens in a prompt and in a response.

    Attributes:
        net: the ``torch.nn.Module`` that holds its weights; changing them changes what :meth:`sample` draws.
        layout: its token arithmetic: ``response`` (segments of a response) and ``frames_of(responses)`` -> frame codes.
    """

    net: Any
    layout: Any

    def sample(self, prompt: Any, forced: Any, n: int, seeds: Sequence[int], *, legal: bool = True) -> Any:
        """Draw n responses of each prompt at temperature 1 from the whole (legal) distribution.

        Args:
            prompt: int64 ``[P, Lp]``. forced: int64 ``[P, Lr]``, read at forced positions only. seeds: one per prompt.
            legal: whether logits outside a position's range are masked, as :meth:`log_probs` then does too.

        Returns:
            something with ``tokens`` int64 ``[P, n, Lr]`` and ``log_probs`` float32 ``[P, n, Lr]``, 0 where forced.
        """
        ...

    def log_probs(self, prompt: Any, responses: Any, *, legal: bool = True) -> Any:
        """float32 ``[P, n, Lr]`` of ``responses`` int64 ``[P, n, Lr]``, 0 where forced; differentiable."""
        ...


@runtime_checkable
class Policy(Protocol):
    """An observation in, a chunk of actions out. Scripted, learned, replayed or remote: all have this face."""

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode. The same seed and the same observations give the same actions, bit for bit."""
        ...

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The next K >= 1 actions, float32 ``[K, A]``, in the environment's physical units.

        ``observation`` is what :class:`Environment` gives; a policy reads the entries that it knows.
        """
        ...


@runtime_checkable
class SupportsFork(Protocol):
    """A policy of which several episodes can run at once: one per client of a server, one per environment of a batch."""

    def fork(self) -> Policy:
        """A policy with the same weights and an episode memory of its own; :meth:`Policy.reset` must be called first."""
        ...


@runtime_checkable
class SupportsObserve(Protocol):
    """A policy that can be shown a frame on which it is not asked to act: one that is passed while a chunk is carried out.

    Attributes:
        looks_back: whether it reads frames before the last. Only then must :meth:`observe` be called with every frame that
            :meth:`Policy.act` is not, so that it sees consecutive ones.
    """

    looks_back: bool

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Remember one observation without acting."""
        ...


@runtime_checkable
class LearnedPolicy(Policy, Protocol):
    """A policy that knows what it was trained on.

    Attributes:
        needs: see :class:`~worldsim.core.types.PolicyNeeds`.
    """

    needs: PolicyNeeds


@runtime_checkable
class Environment(Protocol):
    """A ``gymnasium.Env`` that says what its numbers mean: a simulator, a robot or a dream.

    Observations are mappings with the entries that LeRobot's evaluation knows: ``pixels`` (camera name -> uint8
    ``[H, W, 3]``), ``agent_pos`` (the robot's own state, ``[S]``) and, in simulators only, ``environment_state`` (the
    truth about the scene, for scripted experts). Every ``info`` holds ``is_success``.

    Attributes:
        fps: steps, and frames, per second.
        action_spec: what an action row means; ``step`` takes one row.
        state_names: one name per entry of ``agent_pos``.
        task_description: the task in words.
        action_space: a ``gymnasium.spaces.Box`` of shape ``[A]``.
    """

    fps: float
    action_spec: ActionSpec
    state_names: tuple[str, ...]
    task_description: str
    action_space: Any

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """``observation, reward, terminated, truncated, info`` after one action."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class SupportsMotion(Protocol):
    """An environment whose agent has a position and that can say which action moves it at a wanted velocity.

    The position is the first D entries of ``agent_pos``: x, y in px in a plane, x, y, z in m for an arm's hand.

    Attributes:
        low, high: the box that the agent should stay in, ``[D]`` each.
    """

    low: np.ndarray
    high: np.ndarray

    def action_for(self, velocity: np.ndarray) -> np.ndarray:
        """The action row that moves the agent at ``velocity`` (``[D]``, units of the position per second) in the next step.

        Entries that do not move the agent, such as a gripper's, are 0.
        """
        ...
