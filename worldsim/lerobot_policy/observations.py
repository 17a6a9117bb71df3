"""A dataset's episodes as the observations that a policy was trained on: its cameras by its names, state and task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.core.errors import BadEpisode, UserError, again
from worldsim.core.types import DatasetCard, Episode
from worldsim.lerobot_policy.checkpoint import STATE, Checkpoint, camera_name

TASK = "task"


@dataclass(frozen=True)
class Observations:
    """
    Attributes:
        checkpoint: the policy that observes.
        cameras: the policy's camera name -> the dataset's, where they differ.
        deltas: frames that one observation holds, relative to its own, none after it.
        stacked: whether the policy wants a time axis.
        fixed_size: whether frames must have the size that the policy was trained on; others resize by themselves.
        needs_text: whether the policy reads the task in words.
    """

    checkpoint: Checkpoint
    cameras: Mapping[str, str]
    deltas: tuple[int, ...] = (0,)
    stacked: bool = False
    fixed_size: bool = True
    needs_text: bool = False

    def check(self, card: DatasetCard) -> None:
        """
        Raises:
            UserError: the dataset lacks a camera or state that the policy reads; names it.
        """
        name = self.checkpoint.name
        for feature in self.checkpoint.unreadable():
            raise UserError(f"the policy {name} reads {feature}, which a dataset of frames and states does not have")
        known = {camera.name: camera for camera in card.cameras}
        for wanted in self.cameras:
            if wanted not in self._own_names():
                raise UserError(
                    f"cameras.{wanted}: the policy {name} has no such camera; it has {', '.join(self._own_names())}"
                )
        for feature in self.checkpoint.images():
            camera = known[self.camera(feature, known)]
            _, height, width = self.checkpoint.shape(feature)
            if self.fixed_size and (camera.height, camera.width) != (height, width):
                raise UserError(
                    f"the policy {name} sees camera '{self._own_name(feature)}' as {height}x{width}, the dataset "
                    f"{card.name} has '{camera.name}' as {camera.height}x{camera.width}",
                    f"worldsim convert DATA --to lerobot --size {height}x{width}",
                )
        self._check_state(card.name, len(card.state_names) if card.state_names is not None else None)

    def _check_state(self, whose: str, have: int | None) -> None:
        want = self.checkpoint.state_dim()
        if want is not None and have != want:
            found = f"has {have}" if have is not None else "has none"
            raise UserError(
                f"the policy {self.checkpoint.name} reads a state of {want} numbers, the dataset {whose} {found}",
                "worldsim doctor DATA",
            )

    def _own_name(self, feature: str) -> str:
        return camera_name(self.checkpoint.received_as(feature))

    def _own_names(self) -> list[str]:
        return [self._own_name(feature) for feature in self.checkpoint.images()]

    def camera(self, feature: str, known: Mapping[str, Any]) -> str:
        """The dataset's camera for an image feature: as told, else of the same name, give or take WorldEval's ``cam_``.

        Raises:
            UserError: there is none.
        """
        own = self._own_name(feature)
        told = self.cameras.get(own)
        spelled = [told] if told else [own, f"cam_{own}", own.removeprefix("cam_"), feature]
        for name in spelled:
            if name in known:
                return name
        have = ", ".join(sorted(known)) or "none"
        raise UserError(
            f"the policy {self.checkpoint.name} sees a camera '{own}', the dataset has "
            + (f"no camera '{told}'; it has {have}" if told else f"{have}"),
            again({f"cameras.{own}": min(known, default="NAME")}),
        )

    def at(self, episode: Episode, frames: np.ndarray) -> dict[str, Any]:
        """What the policy is shown at ``frames`` (int64 ``[B]``), as its pipeline receives it.

        Images are float32 in 0..1, ``[B, 3, H, W]`` or with a time axis ``[B, n, 3, H, W]``; the state is float32
        ``[B, S]`` or ``[B, n, S]``. Before an episode's first frame that frame is repeated, as LeRobot does.

        Raises:
            BadEpisode: the episode lacks a camera, its state or its task.
        """
        rows = np.maximum(frames[:, None] + np.asarray(self.deltas, np.int64), 0)
        batch: dict[str, Any] = {}
        for feature in self.checkpoint.images():
            batch[self.checkpoint.received_as(feature)] = self._shaped(_images(episode, self._in(episode, feature), rows))
        if self.checkpoint.state_dim() is not None:
            states = torch.from_numpy(self._states(episode)[rows].astype(np.float32))
            batch[self.checkpoint.received_as(STATE)] = self._shaped(states)
        batch[TASK] = [self._task(episode)] * len(frames)
        return batch

    def _in(self, episode: Episode, feature: str) -> str:
        try:
            return self.camera(feature, episode.frames)
        except UserError as error:
            raise BadEpisode(episode.id, f"{episode.source}: {error.sentence}") from error

    def _shaped(self, values: Tensor) -> Tensor:
        return values if self.stacked else values[:, -1]

    def _states(self, episode: Episode) -> np.ndarray:
        states = episode.states
        if states is None or len(states) != episode.num_frames or states.shape[1] != self.checkpoint.state_dim():
            found = "no states" if states is None else f"states of shape {states.shape}"
            want = (episode.num_frames, self.checkpoint.state_dim())
            raise BadEpisode(episode.id, f"{episode.source} has {found}; the policy reads {want}")
        if not np.isfinite(states).all():
            raise BadEpisode(episode.id, f"{episode.source}: a state is not a finite number")
        return states

    def _task(self, episode: Episode) -> str:
        if self.needs_text and not episode.instruction:
            raise BadEpisode(episode.id, f"{episode.source} has no instruction, which the policy reads")
        return episode.instruction or ""


def _images(episode: Episode, camera: str, rows: np.ndarray) -> Tensor:
    """Frames ``rows`` (``[B, n]``) of a camera as float32 ``[B, n, 3, H, W]`` in 0..1; each is decoded once."""
    unique, at = np.unique(rows, return_inverse=True)
    frames = torch.from_numpy(episode.frames[camera].rows(unique)).permute(0, 3, 1, 2)
    return (frames.to(torch.float32) / 255).contiguous()[torch.from_numpy(at.reshape(rows.shape))]
