"""Scenes to imagine: a given frame with its history, the n action steps that follow, and the n true frames they led to.

Cut with ``data.windows``, so a predicted frame k always stands beside the true frame that the same k actions produced.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldsim.core.errors import BadEpisode, UserError, again
from worldsim.core.types import DatasetCard, Episode
from worldsim.data.cameras import camera_stream
from worldsim.data.split import Split, split_episodes
from worldsim.data.transforms import Cover
from worldsim.data.windows import WindowSpec, cut_actions, frame_rows, require_rows, starts


@dataclass(frozen=True)
class SceneSpec:
    """How scenes are cut.

    Attributes:
        camera: which camera, or several stacked (``a+b``, see ``data.cameras``).
        frames: n, frames to imagine after the given one, and action steps.
        start: source frame that is given, or None for the first one that has all its actions.
        delay: rows by which an action's visible effect lags behind it.
        history: how many frames up to the given one are shown to the model, at most; fewer at an episode's beginning.
        size: (height, width) that frames are cut and resized to, as in training; None keeps them.
    """

    camera: str
    frames: int
    start: int | None = None
    delay: int = 0
    history: int = 1
    size: tuple[int, int] | None = None

    def first(self) -> int:
        """The given frame's number in the source."""
        return self.delay if self.start is None else self.start

    def window(self, stride: int) -> WindowSpec:
        """The window of the given frame and its n successors, ``stride`` source frames apart."""
        return WindowSpec(self.frames + 1, stride=stride, delay=self.delay)

    def fits(self, num_frames: int, stride: int) -> bool:
        """Whether an episode of ``num_frames`` holds the scene: its given frame, its actions and its true frames."""
        legal = starts(num_frames, self.window(stride))
        return self.first() in range(legal.start, legal.stop)

    def past(self, stride: int) -> np.ndarray:
        """Source frames up to and with the given one, every ``stride``, at most ``history`` of them, int64."""
        count = min(self.history, self.first() // stride + 1)
        return self.first() - stride * np.arange(count)[::-1]


@dataclass
class Scene:
    """One scene.

    Attributes:
        episode: the episode's id. source: the file a user would open.
        frame_index: the given frame's number in the source.
        fps: of the scene's frames.
        context: uint8 ``[T0, H, W, 3]``, 1 <= T0 <= history; its last frame is the given one.
        truth: uint8 ``[1 + n, H, W, 3]``, the given frame first; None where the actions are not the episode's own.
        actions: ``[n, r, A]`` in physical units, ``r`` source rows per frame.
        instruction: the task in words, or None.
        past: rows between the frames of the context, ``[T0 - 1, r, A]``; None where they were not asked for or not recorded.
    """

    episode: str
    source: str
    frame_index: int
    fps: float
    context: np.ndarray
    truth: np.ndarray | None
    actions: np.ndarray
    instruction: str | None = None
    past: np.ndarray | None = None


def past_actions(rows: np.ndarray | None, spec: SceneSpec, stride: int) -> np.ndarray | None:
    """The rows between the scene's given frames, ``[T0 - 1, stride, A]``; None where the episode does not hold them all."""
    frames = spec.past(stride)
    if rows is None or frames[0] < spec.delay:
        return None
    if len(frames) == 1:
        return np.asarray(rows)[:0].reshape(0, stride, rows.shape[1])
    return cut_actions(np.asarray(rows), int(frames[0]), WindowSpec(len(frames), stride=stride, delay=spec.delay))


def actions(rows: np.ndarray | None, spec: SceneSpec, stride: int, num_frames: int, episode: str) -> np.ndarray:
    """The scene's action steps, ``[n, stride, A]``.

    Args:
        rows: the episode's action rows ``[T, A]`` or ``[T - 1, A]``; None where it has none: rows of width 0 are given.

    Raises:
        BadEpisode: rows that cannot be aligned, or a number that is not finite.
    """
    if rows is None:
        rows = np.zeros((num_frames, 0), np.float32)
    require_rows(episode, num_frames, len(rows))
    out = cut_actions(np.asarray(rows), spec.first(), spec.window(stride))
    if not np.isfinite(out).all():
        raise BadEpisode(episode, f"an action after frame {spec.first()} is not a finite number")
    return out


def cut(episode: Episode, spec: SceneSpec, stride: int, steps: np.ndarray, *, truth: bool = True) -> Scene:
    """Read one scene; only the frames that it needs are decoded.

    Args:
        steps: its actions, ``[n, stride, A]``.
        truth: whether the frames that followed are read too; False for actions that are not the episode's own.

    Raises:
        BadEpisode: the camera is missing here, or a frame cannot be decoded.
    """
    stream = camera_stream(episode, spec.camera, *(spec.size or (None, None)))
    past = spec.past(stride)
    future = frame_rows(spec.first(), spec.window(stride))[1:] if truth else past[:0]
    frames = stream.rows(np.concatenate([past, future]))
    if spec.size is not None:
        frames = Cover(*spec.size).forward(frames)
    return Scene(
        episode=episode.id,
        source=episode.source,
        frame_index=spec.first(),
        fps=episode.fps / stride,
        context=frames[: len(past)],
        truth=frames[len(past) - 1 :] if truth else None,
        actions=steps,
        instruction=episode.instruction,
    )


def choose(card: DatasetCard, ids: Sequence[str], text: str | None) -> tuple[list[int], Split]:
    """Which episodes: indices in the source's order, and the split they were judged by.

    Args:
        text: None or ``held-out``; a part of the split (``train``, ``val``, ``test``, ``all``); ``start:stop`` numbers;
            or numbers and ids, ``3,7`` or ``episode_000003,…``.

    Raises:
        UserError: nothing is selected, or there is no such episode or part.
    """
    split = split_episodes(list(ids), card.splits)
    at = {name: number for number, name in enumerate(ids)}
    if text in (None, "held-out"):
        wanted = split.held_out
        if not wanted:
            raise UserError(f"{card.name} holds no episode out ({len(ids)} in all)", again(episodes="all"))
    elif text == "all" or text in split.parts:
        wanted = split.part(str(text))
    else:
        wanted = [ids[number] for number in _numbers(str(text), at)]
    if not wanted:
        raise UserError(f"--episodes {text} selects none of the {len(ids)} episodes", again(episodes="all"))
    return sorted(at[name] for name in wanted), split


def _numbers(text: str, at: dict[str, int]) -> list[int]:
    bounds = re.fullmatch(r"(\d*):(\d*)", text)
    if bounds:
        return list(range(len(at)))[int(bounds[1] or 0) : int(bounds[2]) if bounds[2] else None]
    out = set()
    for word in (word.strip() for word in text.split(",")):
        number = at.get(word, int(word) if word.isdigit() else -1)
        if not 0 <= number < len(at):
            raise UserError(f"--episodes {text}: there is no episode '{word}' among {len(at)}", again(episodes="all"))
        out.add(number)
    return sorted(out)


def partners(count: int, permutation: int, seed: int) -> list[int]:
    """For each of ``count`` scenes, the scene whose actions it is given instead of its own.

    The scenes are put in a random order (by ``seed``) and each takes the actions of the one ``1 + permutation`` places
    further on, cyclically: none keeps its own, each one's actions are used once, and two permutations never agree.

    Args:
        permutation: 0 … count - 2.
    """
    if not 0 <= permutation < count - 1:
        raise UserError(f"{count} scenes allow {max(count - 1, 0)} permutations of their actions, not {permutation + 1}")
    order = np.random.default_rng(seed).permutation(count)
    out = np.empty(count, np.int64)
    out[order] = np.roll(order, -(1 + permutation))
    return out.tolist()


def scene_seed(seed: int, episode: str, frame_index: int) -> int:
    """31 bits that depend on the run's seed and on which scene it is, not on batches or on the other scenes."""
    digest = hashlib.sha256(f"{seed}/{episode}/{frame_index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF
