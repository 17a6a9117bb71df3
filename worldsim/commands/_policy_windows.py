"""From a dataset and its world tokens to what a policy is trained and judged on; frames are decoded only to fill columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldsim import tokenizers
from worldsim.commands import _world_tokens
from worldsim.core.errors import BadEpisode, UserError, again
from worldsim.core.protocols import EpisodeSource
from worldsim.core.types import ActionSpec
from worldsim.data.cameras import camera_stream, split_names, stacked_info
from worldsim.data.policy_windows import PolicyEpisodes, PolicyWindowSpec
from worldsim.data.split import Split, split_episodes
from worldsim.data.windows import require_rows
from worldsim.tokenizers.kmeans import KMeans
from worldsim.train import distributed


@dataclass(frozen=True)
class Wish:
    """What to read.

    Attributes:
        data: dataset folder. root: where its columns lie. camera: the first by name when None; ``a+b`` stacks two.
        batch: frames per forward pass of the encoder. max_rejected: bad episodes that are accepted. command: for errors.
    """

    data: Path
    root: Path
    camera: str | None = None
    batch: int = 64
    max_rejected: int = 0
    command: str = "train"


@dataclass
class Gathered:
    """Episodes of a dataset as policies read them, and what is known of the dataset.

    Attributes:
        rows: of every episode that was asked for and could be read. split: the dataset's.
        camera: the one read. cameras: each camera in it -> (height, width), px. fps: of its frames.
        rejected: episode -> why it is left out.
    """

    rows: PolicyEpisodes
    split: Split
    camera: str
    cameras: dict[str, tuple[int, int]]
    fps: float
    state_names: tuple[str, ...]
    action_spec: ActionSpec
    rejected: dict[str, str] = field(default_factory=dict)


def open_tokenizer(run: str | None, data: str | None, device: str, command: str = "train") -> KMeans:
    """The world tokens' codebook, frozen.

    Args:
        run: of ``tokenize-world --tokenizer kmeans``, or a policy's run, which holds a copy.

    Raises:
        UserError: none was named, there is none, or it is a tokenizer of another kind.
    """
    make: list[object] = ["worldsim", "tokenize-world", data or "DATA", "--tokenizer", "kmeans"]
    if run is None:
        raise UserError("no world tokens were named: the key 'tokenizer' is a run of tokenize-world", make)
    if not Path(run).exists():
        raise UserError(f"there is no tokenizer run {run}", make)
    tokenizer = tokenizers.load(run, device)
    if not isinstance(tokenizer, KMeans):
        raise UserError(f"{run} holds a tokenizer of another kind ({tokenizer.card()['tokenizer']})", make)
    return tokenizer


def camera_of(wish: Wish, source: EpisodeSource, tokenizer: KMeans) -> str:
    """The wished camera, else the codebook's."""
    return _world_tokens.camera_of(source, tokenizer, wish.camera, wish.command)


def gather(
    wish: Wish,
    source: EpisodeSource,
    tokenizer: KMeans,
    device: str,
    parts: Sequence[str] = ("train", "held-out"),
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Gathered:
    """Read the numbers of the episodes of ``parts``, and fill what their columns lack. Every rank ends with the same, or one
    process does it alone (``world_size`` 1), also where it has siblings that wait.

    Args:
        parts: ``train``, ``held-out``, ``all``, or a part of the dataset's own split; or episode ids.

    Raises:
        UserError: the dataset has no actions, or more than ``max_rejected`` episodes are bad.
    """
    camera, split = camera_of(wish, source, tokenizer), split_episodes(source.ids(), source.card.splits)
    if source.card.actions is None:
        raise UserError(f"the dataset {wish.data} has no actions", ["worldsim", "doctor", wish.data])
    known = set(source.ids())
    names = list(dict.fromkeys(name for part in parts for name in ([part] if part in known else _of_part(split, part))))
    found, rejected = _numbers(source, names, camera)
    columns = _world_tokens.fill(
        wish.root,
        source,
        tokenizer,
        camera,
        list(found.actions),
        device,
        data=wish.data,
        batch=wish.batch,
        rank=rank,
        world_size=world_size,
    )
    rejected |= distributed.union(columns.rejected) if world_size > 1 else columns.rejected
    for name in [name for name in found.actions if name in columns]:
        found.tokens[name], found.embeddings[name] = columns.tokens.load(name), columns.embeddings.load(name)
    _refuse(wish, rejected, len(names))
    infos = {info.name: info for info in source.card.cameras}
    first = stacked_info(camera, source.card.cameras)
    shown = split_names(camera, infos)
    sizes = {name: (first.height // len(shown), first.width) if len(shown) > 1 else _size(infos[name]) for name in shown}
    return Gathered(
        rows=found.only(found.tokens),
        split=split,
        camera=camera,
        cameras=sizes,
        fps=source.card.fps,
        state_names=source.card.state_names or (),
        action_spec=source.card.actions,
        rejected=rejected,
    )


def _of_part(split: Split, part: str) -> list[str]:
    if part == "held-out":
        return split.held_out
    return split.part(part)


def _size(info: Any) -> tuple[int, int]:
    return info.height, info.width


def _numbers(source: EpisodeSource, names: Sequence[str], camera: str) -> tuple[PolicyEpisodes, dict[str, str]]:
    """Actions and states of episodes (no frame is decoded), and the bad ones by reason."""
    at = {name: index for index, name in enumerate(source.ids())}
    out, rejected = PolicyEpisodes({}, {}, {}, {}), dict[str, str]()
    with_states = bool(source.card.state_names)
    for name in names:
        try:
            episode = source.episode(at[name])
            stream = camera_stream(episode, camera)
            if episode.actions is None:
                raise BadEpisode(name, f"{episode.source} has no actions")
            if with_states and (episode.states is None or len(episode.states) != stream.num_frames):
                raise BadEpisode(name, f"{episode.source} has {stream.num_frames} frames and other states")
            if abs(episode.fps - source.card.fps) > 1e-3:
                raise BadEpisode(name, f"{episode.source} has {episode.fps:g} fps, the dataset {source.card.fps:g}")
            require_rows(name, stream.num_frames, len(episode.actions))
            for what in ("actions", "states") if with_states else ("actions",):
                if not np.isfinite(getattr(episode, what)).all():
                    raise BadEpisode(name, f"{episode.source} has {what} that are not finite numbers")
        except BadEpisode as bad:
            rejected[bad.episode] = bad.reason
            continue
        out.actions[name] = np.asarray(episode.actions)
        if with_states:
            out.states[name] = np.asarray(episode.states)
    return out, rejected


def _refuse(wish: Wish, rejected: dict[str, str], count: int) -> None:
    if len(rejected) > wish.max_rejected:
        first, reason = next(iter(rejected.items()))
        raise UserError(
            f"{len(rejected)} of {count} episodes cannot be used, the first is {first}: {reason}",
            again(max_rejected=len(rejected)) if len(rejected) < count else ["worldsim", "doctor", wish.data],
        )


def require_windows(count: int, gathered: Gathered, spec: PolicyWindowSpec, data: Path) -> None:
    """
    Raises:
        UserError: no episode is long enough for a window.
    """
    if not count:
        least = spec.context + max(spec.horizon - 1, spec.future)
        longest = max((len(rows) for rows in gathered.rows.tokens.values()), default=0)
        raise UserError(
            f"{data}: no episode has the {least} frames that context {spec.context}, horizon {spec.horizon} and future "
            f"{spec.future} need; the longest has {longest}",
            again(horizon=max(1, longest // 4), future=max(1, longest // 4)),
        )
