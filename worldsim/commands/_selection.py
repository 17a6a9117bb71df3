"""What part of a dataset is converted, and into what: the chosen episodes, cameras, pixels and rate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from worldsim.core.errors import BadEpisode, UserError, again, did_you_mean
from worldsim.core.types import CameraInfo, DatasetCard, Episode


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``480x640`` -> (480, 640)."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or min(int(match[1]), int(match[2])) < 1:
        raise UserError(f"--size {text} is not of the form HxW", again(size="240x320"))
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Shape:
    """What the target holds: the source's card after the chosen cameras, size and rate."""

    card: DatasetCard
    size: tuple[int, int] | None
    fps: float | None
    split: Mapping[str, str]

    def fit(self, episode: Episode) -> Episode:
        """The episode with the chosen cameras, size, rate and the dataset's split of it."""
        missing = [name for name in self.card.camera_names if name not in episode.frames]
        if missing:
            raise BadEpisode(episode.id, f"{episode.source} lacks camera '{missing[0]}' that other episodes have")
        episode = episode.only(self.card.camera_names)
        if self.size is not None:
            from worldsim.data.video import resized

            episode.frames = {name: resized(stream, *self.size) for name, stream in episode.frames.items()}
        return replace(episode, fps=self.fps or episode.fps, split=episode.split or self.split.get(episode.id))


def shape_of(card: DatasetCard, cameras: str | None, size: str | None, fps: float | None) -> Shape:
    """The target's card. A camera that is not there is refused; what is changed on purpose becomes a note."""
    names, notes = card.camera_names, list(card.notes)
    if cameras:
        names = sorted({name.strip() for name in cameras.split(",")})
        for name in names:
            if name not in card.camera_names:
                raise UserError(f"there is no camera '{name}'{did_you_mean(name, card.camera_names)}")
    kept = tuple(camera for camera in card.cameras if camera.name in names)
    pixels = parse_size(size)
    if pixels is not None:
        notes += [
            f"camera '{camera.name}' was resized from {camera.height}x{camera.width} to {size}"
            for camera in kept
            if (camera.height, camera.width) != pixels
        ]
        kept = tuple(CameraInfo(camera.name, *pixels) for camera in kept)
    actions = card.actions
    if fps is not None:
        notes.append(f"the frame rate was set to {fps:g} by --fps")
        actions = replace(actions, rate=fps) if actions else None
    split = {episode: part for part, ids in (card.splits or {}).items() for episode in ids}
    return Shape(replace(card, cameras=kept, fps=fps or card.fps, actions=actions, notes=notes), pixels, fps, split)


def choose(ids: list[str], text: str | None) -> list[int]:
    """``0:50``, ``:50``, ``3,7`` or ``episode_000003,…`` -> indices in the source's order."""
    if text is None:
        return list(range(len(ids)))
    bounds = re.fullmatch(r"(\d*):(\d*)", text)
    if bounds:
        chosen = list(range(len(ids)))[int(bounds[1] or 0) : int(bounds[2]) if bounds[2] else None]
        if not chosen:
            raise UserError(f"--episodes {text} selects none of the {len(ids)} episodes", again(episodes="0:1"))
        return chosen
    wanted, at = set(), {name: index for index, name in enumerate(ids)}
    for word in (word.strip() for word in text.split(",")):
        if word not in at and not (word.isdigit() and int(word) < len(ids)):
            raise UserError(
                f"--episodes {text}: there is no episode '{word}' among {len(ids)}{did_you_mean(word, ids[:9])}"
            )
        wanted.add(at[word] if word in at else int(word))
    return sorted(wanted)
