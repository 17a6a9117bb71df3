"""``card.json`` of a Wan checkpoint: everything that is needed to use it, and nothing that changes during a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from worldsim.core.errors import UserError
from worldsim.core.files import read_json
from worldsim.core.types import ActionSpec
from worldsim.data.transforms import Normalize
from worldsim.world_models._wan_net import NetSpec

VERSION = 1


@dataclass(frozen=True)
class Sampling:
    """How rollouts are sampled: Euler steps, action guidance (1 is off: one forward per step), time shift."""

    steps: int
    guidance: float
    shift: float

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"sampling.steps = {self.steps} must be at least 1")


@dataclass(frozen=True)
class WanCard:
    """A checkpoint's meaning.

    Attributes:
        base: ``{"model", "geometry", "revision"}``, see ``_wan_geometries.Base``.
        net: what is built around it.
        height, width: pixels. fps: of its frames. frames: of the longest clips, 4k + 1.
        histories: numbers of given latents it was trained with, ascending.
        camera: the camera it saw, or several stacked from top to bottom (``a+b``, see ``data.cameras``).
        action_column: ``raw``, or the latent actions by what made them, ``data.columns.ColumnSpec.maker``.
        action_spec: the meaning of a row. action_delay: rows between a command and its effect.
        normalize: physical rows <-> what the conditioner reads.
        sampling: the defaults of a rollout.
        prompts: text -> key of its embedding ``text.<key>`` in the weights file; empty when they were too many.
        teacher_forced: whether the actions come from an extractor that has seen frames which are to be imagined.
        train_episodes: ids of the episodes it has seen.
        action_dropout: share of clips whose actions were hidden in training, without which guidance means nothing; None in
            cards that do not say.
    """

    base: dict[str, Any]
    net: NetSpec
    height: int
    width: int
    fps: float
    frames: int
    histories: tuple[int, ...]
    camera: str
    action_column: str
    action_spec: ActionSpec
    action_delay: int
    normalize: Normalize
    sampling: Sampling
    prompts: dict[str, str]
    teacher_forced: bool = False
    train_episodes: tuple[str, ...] = ()
    action_dropout: float | None = None

    @property
    def context_frames(self) -> int:
        return 1 + 4 * (self.histories[-1] - 1)

    def with_sampling(self, steps: int | None, guidance: float | None) -> WanCard:
        own = self.sampling
        chosen = Sampling(own.steps if steps is None else steps, own.guidance if guidance is None else guidance, own.shift)
        return replace(self, sampling=chosen)

    def to_json(self) -> dict[str, Any]:
        plain = {k: v for k, v in vars(self).items() if k not in ("net", "action_spec", "normalize", "sampling")}
        return {
            "world_model": "wan",
            "version": VERSION,
            **plain,
            "histories": list(self.histories),
            "train_episodes": list(self.train_episodes),
            "net": asdict(self.net),
            "action_spec": self.action_spec.to_json(),
            "normalize": self.normalize.to_json(),
            "sampling": asdict(self.sampling),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], source: str) -> WanCard:
        """
        Raises:
            UserError: a key is missing or unknown, or another version wrote it; names ``source``.
        """
        values = {k: v for k, v in data.items() if k not in ("world_model", "version")}
        if data.get("version") != VERSION:
            raise UserError(f"{source} has version {data.get('version')}; this program reads version {VERSION}")
        try:
            parts: dict[str, Any] = {
                "net": NetSpec(**values.pop("net")),
                "action_spec": ActionSpec.from_json(values.pop("action_spec")),
                "normalize": Normalize.from_json(values.pop("normalize")),
                "sampling": Sampling(**values.pop("sampling")),
                "histories": tuple(values.pop("histories")),
                "train_episodes": tuple(values.pop("train_episodes", ())),
            }
            return cls(**values, **parts)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{source} is not a Wan checkpoint's card: {error}") from error

    @classmethod
    def read(cls, path: Path) -> WanCard:
        return cls.from_json(read_json(path), str(path))
