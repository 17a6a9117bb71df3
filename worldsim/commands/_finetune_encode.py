"""The encode phase of finetune-wan: frozen encoders fill columns, shared among processes; then they leave memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from worldsim.commands import _latents
from worldsim.commands._finetune_clips import Choice, Wish, choose_latents, refuse_rejected
from worldsim.commands._latents import Latents
from worldsim.core.errors import BadEpisode
from worldsim.core.protocols import EpisodeSource
from worldsim.core.types import FrameStream
from worldsim.data.batches import Buckets, Clips, normalised
from worldsim.data.cameras import camera_stream
from worldsim.data.columns import Column
from worldsim.data.transforms import Normalize
from worldsim.encoders.umt5 import clean
from worldsim.train import distributed
from worldsim.world_models import _wan_encode
from worldsim.world_models._wan_geometries import Base

PROMPT_BYTES = 64 * 2**20
"""Prompt embeddings up to this size travel in the checkpoint, so that known tasks need no text encoder."""


@dataclass
class Encoded:
    """What the encode phase leaves for the train phase.

    Attributes:
        clips: what is trained on, in buckets of one length, actions normalised.
        latents: the column of actions, in physical units. action_column: its name for the checkpoint's card.
        normalize: physical rows <-> what the conditioner reads.
        prompts: text -> key in ``texts``.
        texts: key -> embedding ``[L, D]``, unpadded.
    """

    clips: Buckets
    latents: Latents
    action_column: str
    normalize: Normalize
    prompts: dict[str, str]
    texts: dict[str, np.ndarray]

    @property
    def texts_travel(self) -> bool:
        """Whether the embeddings are small enough to go into the checkpoint."""
        return sum(array.nbytes for array in self.texts.values()) <= PROMPT_BYTES


def encode(
    wish: Wish, source: EpisodeSource, choice: Choice, base: Base, device: str, *, rank: int = 0, world_size: int = 1
) -> Encoded:
    """Fill the columns and open them as clips. Every rank ends with the same clips.

    Episodes that are lost on the way join ``choice.rejected``.

    Raises:
        UserError: survey and encoding together lost more than ``max_rejected`` episodes, or none is left.
    """
    share = {"rank": rank, "world_size": world_size}
    latents, action_column = choose_latents(wish, source, choice.plan.dataset, **share)
    bad: dict[str, str] = {entry["episode"]: entry["reason"] for entry in latents.rejected}

    def reject(error: BadEpisode) -> None:
        bad[error.episode] = error.reason

    encoders = _wan_encode.Encoders(base, device)
    columns: dict[int, dict[str, Column]] = {}
    for frames, starts in choice.buckets.items():
        plan = choice.plan_of(frames)
        streams = {name: _opener(source, choice, name) for name in starts}
        columns[frames] = _wan_encode.encode_windows(wish.root, encoders, plan, streams, wish.batch, **share, reject=reject)
    del encoders
    texts = [*(choice.facts[name].instruction for name in choice.episodes), ""]
    text, keys = _wan_encode.encode_texts(wish.root, base, texts, device, **share)
    used = _used(choice, latents, columns, distributed.union(bad), wish, action_column)
    normalize = Normalize.of(_latents.train_stats(latents.column, used, write=False), wish.normalise)
    embeddings = {key: np.array(text.load(key)) for key in keys.values()}

    def bucket(frames: int, starts: dict[str, list[int]]) -> Clips:
        return Clips(
            spec=choice.plan_of(frames).window,
            starts=starts,
            actions=normalised({name: latents.column.load(name) for name in starts}, normalize),
            columns=columns[frames],
            prompts={name: keys[clean(choice.facts[name].instruction)] for name in starts},
            texts=embeddings,
            text_tokens=base.geometry.text_tokens,
        )

    kept = {f: {name: at for name, at in starts.items() if name in used} for f, starts in choice.buckets.items()}
    clips = Buckets([bucket(frames, starts) for frames, starts in kept.items() if starts])
    return Encoded(clips, latents, action_column, normalize, keys, embeddings)


def _opener(source: EpisodeSource, choice: Choice, name: str) -> Callable[[], FrameStream]:
    plan = choice.plan
    return lambda: camera_stream(source.episode(choice.facts[name].index), plan.camera, plan.height, plan.width)


def _used(
    choice: Choice,
    latents: Latents,
    columns: dict[int, dict[str, Column]],
    bad: dict[str, str],
    wish: Wish,
    action_column: str,
) -> list[str]:
    """Episodes that every column holds, in the source's order; the others join ``choice.rejected``, with their reasons."""
    whole: set[str] = set()
    for frames, starts in choice.buckets.items():
        needed = [latents.column, *columns[frames].values()]
        whole |= {name for name in starts if all(name in column for column in needed)}
    used = [name for name in choice.episodes if name in whole]
    absent, count = f"the column {action_column} has no rows of it", len(choice.facts) + len(choice.rejected)
    choice.rejected += [BadEpisode(name, bad.get(name, absent)) for name in choice.episodes if name not in whole]
    refuse_rejected(choice.rejected, len(used), count, wish)
    return used
