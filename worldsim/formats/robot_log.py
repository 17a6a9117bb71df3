"""Logs that ``worldsim robot run`` writes while it runs (``data/robot_log.py``); read only.

``actions`` is what was really sent, as the robot returned it; further columns: ``policy_action`` (what the policy wished),
``late`` (1 where its answer came too late), ``seconds`` (since the run began), ``world_token`` and ``world_future`` (what a
world-modality policy saw and predicted). A run that was killed is read up to its last whole step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from worldsim.core.errors import BadEpisode, UserError, again
from worldsim.core.registry import register
from worldsim.core.types import DatasetCard, Episode
from worldsim.data import robot_log as logs

CARD = {
    "title": "Logs of robot run (read)",
    "source": "worldsim",
    "size": "about 40 KB per 480x640 frame",
    "license": "Apache-2.0",
}


@register("formats")
class RobotLog:
    """Reads a log folder."""

    @staticmethod
    def detect(path: Path) -> bool:
        return (path / logs.HEAD).is_file()

    @staticmethod
    def open(path: Path) -> RobotLogSource:
        return RobotLogSource(Path(path))

    @staticmethod
    def lacks(card: DatasetCard) -> str | None:
        return "robot-log is read only; robot run writes it"

    @staticmethod
    def create(path: Path, card: DatasetCard) -> Any:
        raise UserError(str(RobotLog.lacks(card)), again(to="lerobot"))


class RobotLogSource:
    """Every episode of a log that holds at least one step."""

    def __init__(self, path: Path) -> None:
        self.path, self.head = path, logs.read_head(path)
        self.folders = logs.episodes(path)
        if not self.folders:
            raise UserError(f"{path} holds no step of an episode", "worldsim robot run --robot fake")
        name = path.resolve()
        self.card = self.head.card(name.parent.name if name.name == "log" else name.name)
        extras = [set(self.episode(k).extras) for k in range(len(self.folders))]
        self.card.extras = tuple(sorted(set.intersection(*extras)))

    def __len__(self) -> int:
        return len(self.folders)

    def ids(self) -> list[str]:
        return [folder.name for folder in self.folders]

    def episode(self, index: int) -> Episode:
        folder, head = self.folders[index], self.head
        try:
            steps = logs.read_steps(folder)
        except UserError as error:
            raise BadEpisode(folder.name, error.sentence) from error
        end = logs.read_json(folder / logs.END) if (folder / logs.END).exists() else {"stopped_by": "killed"}
        streams = {camera: logs.frames(folder, camera, steps, head.cameras[camera]) for camera in sorted(head.cameras)}
        return Episode(
            id=folder.name,
            index=index,
            source=str(folder),
            fps=head.fps,
            frames=streams,
            actions=_actions(folder.name, steps, head),
            states=np.array([step["state"] for step in steps], np.float32),
            instruction=head.task or None,
            extras=_extras(steps),
            provenance={"original_id": folder.name, "mode": head.mode, "policy": head.policy, **end},
        )

    def close(self) -> None:
        """Nothing stays open."""


def _actions(episode: str, steps: list[dict[str, Any]], head: logs.Head) -> np.ndarray | None:
    """``[T, A]`` or, where nothing was sent after the last frame, ``[T - 1, A]``; None where nothing was sent at all."""
    if head.done == "none":
        return None
    rows = [step.get("sent") for step in steps]
    if head.done == "reached":  # a person moved it: row t is where the joints were at frame t + 1
        at = [head.state_names.index(name) for name in head.action_spec.names]
        rows = [[step["state"][k] for k in at] for step in steps[1:]]
    elif rows[-1] is None:
        rows = rows[:-1]
    gap = next((t for t, row in enumerate(rows) if row is None), None)
    if gap is not None:
        raise BadEpisode(episode, f"nothing was sent after frame {gap}")
    return np.array(rows, np.float32).reshape(len(rows), head.action_spec.dim)


def _extras(steps: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Columns that every step has; the last step repeats the one before it where the run ended in between."""
    out = {"seconds": np.array([step["seconds"] for step in steps], np.float64)}
    out["late"] = np.array([bool(step.get("late")) for step in steps], np.int64)
    for name, key, dtype in (
        ("policy_action", "wish", np.float32),
        ("world_token", "token", np.int64),
        ("world_future", "future", np.int64),
    ):
        values = [step.get(key) for step in steps]
        if len(values) > 1 and values[-1] is None:
            values[-1] = values[-2]
        if all(value is not None for value in values):
            out[name] = np.array(values, dtype)
    return out
