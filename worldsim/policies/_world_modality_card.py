"""``card.json`` of a world-modality policy: everything that is needed to act with it, and nothing that changes during a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from worldsim.core.errors import UserError
from worldsim.core.files import read_json
from worldsim.core.types import ActionSpec, PolicyNeeds
from worldsim.data.policy_windows import PolicyWindowSpec, Scaling
from worldsim.policies._world_modality_sizes import NetSpec

POLICY = "world-modality"
VERSION = 1


@dataclass(frozen=True)
class ModalityCard:
    """A checkpoint's meaning.

    Attributes:
        net: of its network (arm, C, H, K and all sizes). scaling: how numbers are normalised, from training episodes alone.
        camera: the one it saw, or several stacked (``a+b``). cameras: each one's name -> (height, width), px, from top to
            bottom; the tokenizer resizes.
        fps: of its frames. state_names: of ``agent_pos``; empty without states. action_spec: the meaning of a row.
        tokenizer: about the codebook, a copy of which lies in ``tokenizer/``: its card, and ``codebook_hash``.
        train_episodes, held_out_episodes: ids; training has seen the first alone.
        dataset: its fingerprint. data_fraction: share of the training episodes that was used. seed: of the training.
        revision: of this program; None outside a checkout.
    """

    net: NetSpec
    scaling: Scaling
    camera: str
    cameras: dict[str, tuple[int, int]]
    fps: float
    state_names: tuple[str, ...]
    action_spec: ActionSpec
    tokenizer: dict[str, Any]
    train_episodes: tuple[str, ...] = field(default=())
    held_out_episodes: tuple[str, ...] = field(default=())
    dataset: str = ""
    data_fraction: float = 1.0
    seed: int = 0
    revision: str | None = None

    @property
    def arm(self) -> str:
        return self.net.arm

    @property
    def spec(self) -> PolicyWindowSpec:
        """How its windows are cut."""
        return PolicyWindowSpec(self.net.context, self.net.horizon, self.net.future)

    @property
    def needs(self) -> PolicyNeeds:
        return PolicyNeeds(
            cameras=self.cameras,
            state_names=self.state_names,
            action_spec=self.action_spec,
            fps=self.fps,
            low=self.scaling.low,
            high=self.scaling.high,
        )

    def to_json(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        lists = {key: list(values[key]) for key in ("state_names", "train_episodes", "held_out_episodes")}
        parts = {"net": self.net.card(), "scaling": self.scaling.to_json(), "action_spec": self.action_spec.to_json()}
        return {
            "policy": POLICY,
            "version": VERSION,
            "arm": self.arm,
            "window": asdict(self.spec),
            **values,
            **lists,
            **parts,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], source: str) -> ModalityCard:
        """
        Raises:
            UserError: a key is missing or unknown, or another version wrote it; names ``source``.
        """
        if data.get("policy") != POLICY:
            raise UserError(
                f"{source} is no card of a world-modality policy", "worldsim train --config world_modality_c DATA"
            )
        if data.get("version") != VERSION:
            raise UserError(f"{source} has version {data.get('version')}; this program reads version {VERSION}")
        values = {key: value for key, value in data.items() if key not in ("policy", "version", "arm", "window")}
        try:
            lists: dict[str, Any] = {
                key: tuple(values.pop(key)) for key in ("state_names", "train_episodes", "held_out_episodes")
            }
            parts: dict[str, Any] = {
                "net": NetSpec(**values.pop("net")),
                "scaling": Scaling.from_json(values.pop("scaling")),
                "action_spec": ActionSpec.from_json(values.pop("action_spec")),
                "cameras": {name: (size[0], size[1]) for name, size in values.pop("cameras").items()},
            }
            return cls(**values, **lists, **parts)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{source} is no card of a world-modality policy: {error}") from error

    @classmethod
    def read(cls, path: Path) -> ModalityCard:
        return cls.from_json(read_json(path), str(path))
