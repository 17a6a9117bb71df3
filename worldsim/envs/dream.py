"""A world model as an environment: it begins with a recorded frame, and every step imagines exactly one frame.

What success in a dream means: nothing by itself. A dream has no physics that could be asked; ``is_success`` is what a judge
says of the imagined frames, and False where there is none (``docs/closed-loop.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import gymnasium
import numpy as np
from gymnasium import spaces

from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.protocols import EpisodeSource
from worldsim.core.registry import register
from worldsim.core.types import ActionSpec
from worldsim.data import scenes
from worldsim.data.cameras import split_names
from worldsim.data.scenes import Scene, SceneSpec
from worldsim.data.unfolding import Start, Unfolding

CARD = {
    "title": "Dream: a world model in which a policy acts, from a dataset's own frames",
    "source": "worldsim; after DIAMOND's world model environment, https://arxiv.org/abs/2405.12399",
    "size": "the world model's",
    "license": "Apache-2.0",
}
Imagine = Callable[[Scene, np.ndarray, np.ndarray, int, np.ndarray | None], np.ndarray]
"""Scene, context ``[T0, H, W, 3]``, the rows that act ``[n, A]``, a noise seed and the rows before them ``[t, 1, A]`` or None ->
the next n frames, uint8 ``[n, H, W, 3]``."""
Judge = Callable[[np.ndarray, np.ndarray], bool]
"""Frames so far ``[T, H, W, 3]`` and the recorded episode's last frame ``[H, W, 3]`` -> whether the task is done."""


@dataclass(frozen=True)
class Setting:
    """Where dreams begin, and what their numbers mean.

    Attributes:
        source: the dataset. episodes: the numbers of those that a dream may begin in.
        spec: which camera, how much history, which size, which delay (``frames`` is not read).
        low, high: the range of actions, ``[A]``, physical units.
        follows: whether the robot's state after a step is the action row; else it stays as recorded.
        anywhere: whether a dream begins at any frame that the seed draws, not at the first that has its history.
        limit: steps after which an episode is truncated; 0 never.
        whole: whether each step imagines the dream again from its recorded beginning with all actions so far, and shows the
            last frame; else it goes on from the frames that it has imagined.
    """

    source: EpisodeSource
    episodes: Sequence[int]
    spec: SceneSpec
    low: np.ndarray
    high: np.ndarray
    follows: bool = False
    anywhere: bool = False
    limit: int = 0
    whole: bool = False


@register("envs")
class Dream(gymnasium.Env):
    """``reset(seed)`` picks (episode, frame): episode ``seed`` modulo their number, the frame as ``Setting.anywhere`` says.

    Observations: ``pixels`` of the cameras that the model imagines, ``agent_pos`` (recorded, or the last action where the
    dataset's actions are absolute targets). The same seed and the same actions give the same frames.

    Args:
        imagine: the world model behind a function (``commands._dream_env``).
        judge: says when the task is done; without one ``is_success`` is always False.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"

    def __init__(self, imagine: Imagine, setting: Setting, judge: Judge | None = None) -> None:
        card = setting.source.card
        if card.actions is None:
            raise UserError(f"a dream needs actions to follow, and {card.name} has none", "worldsim doctor DATA")
        if not setting.episodes:
            raise UserError(f"a dream needs an episode of {card.name} to begin in")
        self.imagine, self.setting, self.judge = imagine, setting, judge
        self.fps = float(card.fps)
        self.metadata = {**self.metadata, "render_fps": self.fps}
        self.action_spec: ActionSpec = card.actions
        self.state_names = tuple(card.state_names or ())
        self._names = split_names(setting.spec.camera, card.camera_names)
        self.action_space = spaces.Box(setting.low, setting.high, dtype=np.float32)
        self.task_description = ""
        self._dream: Unfolding | None = None
        self._begin(0)
        self.observation_space = self._space()

    @classmethod
    def tiny(cls) -> Self:
        from worldsim.envs._dream_twin import twin

        return cls(*twin())

    def _space(self) -> spaces.Dict:
        seen = self._observe()
        views: dict[str, spaces.Space] = {
            name: spaces.Box(0, 255, view.shape, np.uint8) for name, view in seen["pixels"].items()
        }
        out: dict[str, spaces.Space] = {
            "pixels": spaces.Dict(views),
            "agent_pos": spaces.Box(-np.inf, np.inf, seen["agent_pos"].shape, np.float32),
        }
        return spaces.Dict(out)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Raises:
            BadEpisode: the episode cannot be read.
        """
        super().reset(seed=seed)
        self._begin(int(self.np_random.integers(2**31)) if seed is None else seed)
        return self._observe(), {"is_success": False, "episode": self.dream.scene.episode}

    @property
    def dream(self) -> Unfolding:
        assert self._dream is not None
        return self._dream

    def _begin(self, seed: int) -> None:
        setting = self.setting
        episode = setting.source.episode(setting.episodes[seed % len(setting.episodes)])
        spec = replace(setting.spec, frames=1)
        if setting.anywhere:
            last = episode.num_frames - 1
            rng = np.random.default_rng([seed, 0xD4EA])
            spec = replace(spec, start=int(rng.integers(spec.first(), max(last, spec.first() + 1))))
        if spec.first() >= episode.num_frames:
            raise BadEpisode(
                episode.id, f"{episode.source} has {episode.num_frames} frames, a dream begins at {spec.first()}"
            )
        scene = scenes.cut(episode, spec, 1, np.zeros((0, 1, self.action_spec.dim), np.float32), truth=False)
        if self.judge is not None:
            self._goal = scenes.cut(episode, replace(spec, start=episode.num_frames - 1), 1, scene.actions, truth=False)
        self._acted: list[np.ndarray] = []
        self._past = scenes.past_actions(episode.actions, spec, 1)
        start = Start.of(episode, spec, 1)
        self._dream = Unfolding.begin(scene, start, self._names, follows=setting.follows, seed=seed)
        self.task_description = episode.instruction or ""
        self._turn = 0

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Imagine the frame after ``action``. Never terminates; the reward is 1 where the judge sees success, else 0.

        An action acts ``delay`` steps after it was sent where the model was trained so; until then recorded rows act.
        """
        dream, row = self.dream, np.asarray(action, np.float32)
        dream.rows.append(row)
        acting = dream.take(1)
        frame = self._next(acting)
        dream.watch(frame[None], acting)
        self._acted.append(acting)
        self._turn += 1
        done = self.judge is not None and bool(self.judge(dream.frames, self._goal.context[-1]))
        truncated = bool(self.setting.limit) and self._turn >= self.setting.limit
        return self._observe(), float(done), False, truncated, {"is_success": done, "episode": dream.scene.episode}

    def _next(self, acting: np.ndarray) -> np.ndarray:
        """The frame after the row ``[1, A]``. Noise is new at every step, but one for all of a dream that is told again."""
        dream = self.dream
        if self.setting.whole:
            rows = np.concatenate([*self._acted, acting])
            return self.imagine(dream.scene, dream.scene.context, rows, dream.noise(0), self._past)[-1]
        past = None if self._past is None else np.concatenate([self._past, *(row[None] for row in self._acted)])
        context = dream.frames[-self.setting.spec.history :]
        return self.imagine(dream.scene, context, acting, dream.noise(self._turn), past)[-1]

    def _observe(self) -> dict[str, Any]:
        seen = self.dream.observation()
        state = seen.get("agent_pos", np.zeros(0, np.float32))
        return {
            "pixels": {name: np.ascontiguousarray(view) for name, view in seen["pixels"].items()},
            "agent_pos": np.asarray(state, np.float32).copy(),
        }

    def render(self) -> np.ndarray:
        """The frame now, uint8 ``[H, W, 3]``, all cameras one above the other."""
        return np.ascontiguousarray(self.dream.frames[-1])

    def close(self) -> None:
        self.setting.source.close()
