"""From a dataset and a tokenizer to what a token world model is trained and reinforced on: windows of tokens and actions.

Nothing is tokenised or decoded from video here beyond the columns: a batch is a few rows of memory-mapped files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.commands import _tokens
from worldsim.commands._tokens import Cut, Tokens
from worldsim.core.errors import BadEpisode, UserError, again
from worldsim.core.protocols import EpisodeSource
from worldsim.core.types import ActionSpec
from worldsim.data import cameras, columns, windows
from worldsim.data.split import split_episodes
from worldsim.data.transforms import Cover
from worldsim.data.windows import WindowSpec, require_rows, stride_for
from worldsim.train import distributed


@dataclass(frozen=True)
class Wish:
    """Which windows.

    Attributes:
        data: dataset folder. root: where its columns lie.
        camera: the first by name when None. fps: the dataset's when None.
        history, predicted: frames given and frames to predict.
        back: the context frame of a context-conditioned tokenizer lies up to so many frames before the first given one.
        delay: rows between a command and its effect.
        batch: frames per forward pass of the tokenizer.
        max_rejected: how many bad episodes are accepted. command: which command to name in errors.
    """

    data: Path
    root: Path
    camera: str | None
    fps: float | None
    history: int
    predicted: int
    back: int = 0
    delay: int = 0
    batch: int = 16
    max_rejected: int = 0
    command: str = "train"


@dataclass
class TokenWindows:
    """Windows of ``history + predicted`` frames, with what is needed to draw batches of them.

    Attributes:
        wish: what was asked for. cut: of the columns. spec: how windows are cut. fps: of their frames.
        tokens: the columns.
        actions: episode id -> physical rows ``[T or T - 1, A]``.
        starts: episode id -> first given frame of each window.
        action_spec: the meaning of a row.
        rejected: episode id -> why it is left out.
    """

    wish: Wish
    source: EpisodeSource
    cut: Cut
    spec: WindowSpec
    fps: float
    tokens: Tokens
    actions: dict[str, np.ndarray]
    starts: dict[str, list[int]]
    action_spec: ActionSpec
    size: tuple[int, int]
    rejected: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.index = [(episode, start) for episode, starts in self.starts.items() for start in starts]
        self._at = {name: number for number, name in enumerate(self.source.ids())}

    def __len__(self) -> int:
        return len(self.index)

    @property
    def episodes(self) -> list[str]:
        return sorted(self.starts)

    def furthest(self, start: int) -> int:
        """How many frames before ``start`` the context frame may lie."""
        return min(self.wish.back, start // self.cut.stride)

    def batch(self, indices: Iterable[int], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """``context`` int64 ``[B, Lc]``, ``frames`` int64 ``[B, F, L]``, ``actions`` float32 ``[B, F - 1, r, A]`` (physical).

        Args:
            rng: draws each window's context frame, uniformly from those that ``wish.back`` allows; None takes the first
                given frame itself.
        """
        context, frames, rows = [], [], []
        for number in indices:
            episode, start = self.index[int(number)]
            back = int(rng.integers(0, self.furthest(start) + 1)) if rng is not None and self.tokens.context else 0
            own, seen = self.tokens.window(episode, start, self.spec.frames, back)
            context.append(own)
            frames.append(seen)
            rows.append(windows.cut_actions(self.actions[episode], start, self.spec))
        return {"context": np.stack(context), "frames": np.stack(frames), "actions": np.stack(rows).astype(np.float32)}

    def pixels(self, indices: Iterable[int]) -> np.ndarray:
        """The windows' true frames, uint8 ``[B, F, H, W, 3]``, cut and resized as for the tokenizer."""
        return np.stack([self._frames(*self.index[int(number)]) for number in indices])

    def _frames(self, episode: str, start: int) -> np.ndarray:
        stream = cameras.camera_stream(self.source.episode(self._at[episode]), self.cut.camera, *self.size)
        return Cover(*self.size).forward(stream.rows(windows.frame_rows(start, self.spec)))


def choose_camera(source: EpisodeSource, wanted: str | None, command: str) -> str:
    """The named camera or stack of cameras, else the first by name.

    Raises:
        UserError: it is not there.
    """
    known, where = source.card.camera_names, f"the dataset {source.card.name}"
    if not known:
        raise UserError(f"{where} has no camera", "worldsim doctor DATA")
    name = wanted or min(known)
    return cameras.JOIN.join(cameras.require_cameras(name, known, where, f"worldsim {command} --camera {min(known)}"))


def cut_for(wish: Wish, source: EpisodeSource, tokenizer: Any) -> Cut:
    """What has to be tokenised for such windows."""
    reach = wish.back + wish.history + wish.predicted if tokenizer.context_tokens else 1
    camera = choose_camera(source, wish.camera, wish.command)
    return Cut(camera, stride_for(source.card.fps, wish.fps), reach)


def survey(wish: Wish, source: EpisodeSource, names: Sequence[str], spec: WindowSpec, cut: Cut) -> _Survey:
    """Look at the numbers of ``names`` (no frame is decoded): windows of those that hold any; the bad ones by reason."""
    at = {name: index for index, name in enumerate(source.ids())}
    out = _Survey()
    for name in names:
        try:
            episode = source.episode(at[name])
            stream = cameras.camera_stream(episode, cut.camera)
            if episode.actions is None:
                raise BadEpisode(name, f"{episode.source} has no actions")
            if abs(episode.fps - source.card.fps) > 1e-3:
                raise BadEpisode(name, f"{episode.source} has {episode.fps:g} fps, the dataset {source.card.fps:g}")
            require_rows(name, stream.num_frames, len(episode.actions))
            if not np.isfinite(episode.actions).all():
                raise BadEpisode(name, f"{episode.source} has actions that are not finite numbers")
        except BadEpisode as bad:
            out.rejected[bad.episode] = bad.reason
            continue
        out.longest = max(out.longest, stream.num_frames)
        found = list(windows.starts(stream.num_frames, spec))
        if found:
            out.starts[name], out.actions[name] = found, np.asarray(episode.actions)
    return out


@dataclass
class _Survey:
    starts: dict[str, list[int]] = field(default_factory=dict)
    actions: dict[str, np.ndarray] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    longest: int = 0


def prepare(
    wish: Wish,
    source: EpisodeSource,
    tokenizer: Any,
    device: str,
    *,
    part: str = "train",
    most: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> TokenWindows:
    """The phase ``encode``: tokenise what the columns lack of one part of the split, and open them as windows.

    Every rank ends with the same windows. The caller drops the tokenizer afterwards if it wants its memory back.

    Args:
        tokenizer: on ``device``.
        part: ``train``, ``held-out``, or a part of the dataset's own split. most: at most so many episodes.

    Raises:
        UserError: no episode is long enough, or more than ``max_rejected`` are bad.
    """
    cut = cut_for(wish, source, tokenizer)
    spec = WindowSpec(wish.history + wish.predicted, stride=cut.stride, delay=wish.delay)
    split = split_episodes(source.ids(), source.card.splits)
    names = (split.held_out if part == "held-out" else split.part(part))[:most]
    seen = survey(wish, source, names, spec, cut)
    refuse(wish, seen, len(names), spec)
    found = _tokens.specs(tokenizer, columns.dataset_fingerprint(wish.data), cut)
    share = {"rank": rank, "world_size": world_size}
    tokens = _tokens.fill(wish.root, source, tokenizer, found, cut, seen.starts, device, batch=wish.batch, **share)
    seen.rejected |= distributed.union(tokens.rejected)
    starts = {name: at for name, at in seen.starts.items() if name in tokens}
    seen.starts = starts
    refuse(wish, seen, len(names), spec)
    meaning = source.card.actions or ActionSpec.unknown(next(iter(seen.actions.values())).shape[1], source.card.fps)
    return TokenWindows(
        wish=wish,
        source=source,
        cut=cut,
        spec=spec,
        fps=source.card.fps / cut.stride,
        tokens=tokens,
        actions={name: seen.actions[name] for name in starts},
        starts=starts,
        action_spec=meaning,
        size=(tokenizer.height, tokenizer.width),
        rejected=seen.rejected,
    )


def refuse(wish: Wish, seen: _Survey, count: int, spec: WindowSpec) -> None:
    """
    Raises:
        UserError: more than ``max_rejected`` of ``count`` episodes were lost, or no window is left.
    """
    if len(seen.rejected) > wish.max_rejected or (seen.rejected and not seen.starts):
        first, reason = next(iter(seen.rejected.items()))
        accept = again(max_rejected=len(seen.rejected))
        raise UserError(
            f"{len(seen.rejected)} of {count} episodes cannot be used, the first is {first}: {reason}",
            accept if seen.starts else ["worldsim", "doctor", wish.data],
        )
    if not seen.starts:
        raise UserError(
            f"{wish.data}: no episode of {count} has the {spec.span + spec.delay} source frames that windows of "
            f"{spec.frames} frames need (one of every {spec.stride} is taken); the longest has {seen.longest}",
            again(predicted=max(1, wish.predicted // 2)),
        )
