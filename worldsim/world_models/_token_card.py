"""``card.json`` of a token world model: everything that is needed to use it, and nothing that changes during a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from worldsim.core.errors import UserError
from worldsim.core.files import read_json
from worldsim.core.types import ActionSpec
from worldsim.world_models._token_layout import Layout
from worldsim.world_models._token_net import NetSpec

VERSION = 1


@dataclass(frozen=True)
class Sampling:
    """How rollouts are sampled; ``top_k`` None draws from every legal code."""

    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"temperature = {self.temperature} must be at least 0, which takes the likeliest code")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k = {self.top_k} must be at least 1")


@dataclass(frozen=True)
class TokenCard:
    """A checkpoint's meaning.

    Attributes:
        layout: of its sequences. net: of its transformer.
        tokenizer: ``{"name", "digest"}`` of the tokenizer whose codes it speaks; a copy lies in ``tokenizer/``.
        height, width: pixels. fps: of its frames. camera: the one it saw.
        context_back: how far before the first given frame its context frame was in training, at most.
        action_spec: the meaning of a row. action_delay: rows between a command and its effect.
        rows_per_frame: r, source rows per frame.
        bins: ranges of the action bins (``data.token_actions``), from training episodes alone.
        sampling: the defaults of a rollout.
        legal: whether its probabilities are over the legal codes of a position; False is the whole vocabulary, as released.
        short_history: whether it has learnt to go on from fewer frames than its history.
        train_episodes: ids of the episodes it has seen.
    """

    layout: Layout
    net: NetSpec
    tokenizer: dict[str, str]
    height: int
    width: int
    fps: float
    camera: str
    context_back: int
    action_spec: ActionSpec
    action_delay: int
    rows_per_frame: int
    bins: dict[str, Any]
    sampling: Sampling = Sampling()
    legal: bool = True
    short_history: bool = False
    train_episodes: tuple[str, ...] = field(default=())

    def with_sampling(self, temperature: float | None, top_k: int | None) -> TokenCard:
        """None keeps the card's value; ``top_k`` 0 draws from every legal code."""
        own = self.sampling
        chosen = own.top_k if top_k is None else (top_k or None)
        return replace(self, sampling=Sampling(own.temperature if temperature is None else temperature, chosen))

    def to_json(self) -> dict[str, Any]:
        return {
            "world_model": "token-ar",
            "version": VERSION,
            **asdict(self),
            "train_episodes": list(self.train_episodes),
            "action_spec": self.action_spec.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], source: str) -> TokenCard:
        """
        Raises:
            UserError: a key is missing or unknown, or another version wrote it; names ``source``.
        """
        values = {key: value for key, value in data.items() if key not in ("world_model", "version")}
        if data.get("version") != VERSION:
            raise UserError(f"{source} has version {data.get('version')}; this program reads version {VERSION}")
        try:
            parts: dict[str, Any] = {
                "layout": Layout(**values.pop("layout")),
                "net": NetSpec(**values.pop("net")),
                "action_spec": ActionSpec.from_json(values.pop("action_spec")),
                "sampling": Sampling(**values.pop("sampling")),
                "train_episodes": tuple(values.pop("train_episodes", ())),
            }
            return cls(**values, **parts)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{source} is no card of a token world model: {error}") from error

    @classmethod
    def read(cls, path: Path) -> TokenCard:
        return cls.from_json(read_json(path), str(path))
