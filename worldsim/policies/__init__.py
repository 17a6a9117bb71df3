"""Policies: an observation in, a chunk of actions out (``core.protocols.Policy``).

:func:`load` reads what a user types; commands use ``commands._policy.open_policy``, which hands in what this shelf may not
import (tokenizers, formats) and fetches from the Hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.core import registry
from worldsim.core.config import parse_overrides
from worldsim.core.errors import UserError, did_you_mean
from worldsim.core.files import read_json
from worldsim.core.protocols import Environment, EpisodeSource, LearnedPolicy, Policy
from worldsim.core.types import PolicyNeeds

CARD_FILE, TOKENIZER, EPOCH = "card.json", "tokenizer", ".pt"
FORMS = "scripted:NAME[,key=value], replay:DATA[#EPISODE], remote:URL, or a folder with a trained policy"


def create(name: str, env: Environment | None, **options: Any) -> Policy:
    """``create("scripted:push", env)``: the shelf's plugin, then what it calls the policy."""
    plugin, _, rest = name.partition(":")
    return registry.get("policies", plugin).create(rest, env, **options)


def load(
    text: str | Path,
    *,
    env: Environment | None = None,
    device: str = "cpu",
    tokenizer_loader: Callable[[Path, str], Any] | None = None,
    open_dataset: Callable[[Path], EpisodeSource] | None = None,
) -> Policy:
    """The policy that ``text`` names.

    Args:
        text: ``scripted:NAME[,key=value]``; ``replay:DATA[#EPISODE]``; ``remote:URL``; a run folder of this program
            (``card.json`` with ``policy``) or one of its ``logs/*.pt``; or the folder of a LeRobot policy, also an output
            folder of lerobot-train.
        env: where it acts; scripted policies need it, a learned one takes the task's words from it.
        device: of a network.
        tokenizer_loader: ``tokenizers.load`` for policies whose checkpoint holds a tokenizer.
        open_dataset: ``formats.open_dataset`` for replays.

    Raises:
        UserError: there is no such policy, or it is unfinished or damaged.
    """
    text, path = str(text), Path(text)
    kind, colon, rest = text.partition(":")
    if colon and not path.exists():
        return _plugin(kind, rest, text, env, open_dataset)
    if path.suffix == EPOCH and path.is_file():
        return _trained(path, path.parent.parent / "checkpoint", device, tokenizer_loader)
    folder = find(path)
    if folder is None:
        raise UserError(
            f"there is no policy '{text}': a policy is {FORMS}", ["ls", path.parent if path.parent != path else "."]
        )
    if (folder / CARD_FILE).is_file():
        return _trained(folder, folder, device, tokenizer_loader)
    return registry.get("policies", "lerobot").load(folder, device, task=getattr(env, "task_description", ""))


def _plugin(
    kind: str, rest: str, text: str, env: Environment | None, open_dataset: Callable[[Path], EpisodeSource] | None
) -> Policy:
    if kind not in registry.names("policies") or not hasattr(registry.get("policies", kind), "create"):
        known = [name for name in registry.names("policies") if hasattr(registry.get("policies", name), "create")]
        raise UserError(f"'{text}': there is no kind of policy '{kind}'{did_you_mean(kind, known)}; a policy is {FORMS}")
    if kind == "replay":
        return create(text, env, open_dataset=open_dataset)
    if kind != "scripted":
        return create(text, env)
    if env is None:
        raise UserError(f"the policy {text} needs an environment to act in: it reads the action range from it")
    name, *pairs = rest.split(",")
    return create(f"{kind}:{name}", env, **parse_overrides(pairs))


def _trained(source: Path, folder: Path, device: str, tokenizer_loader: Callable[[Path, str], Any] | None) -> Policy:
    """The weights in ``source`` (a checkpoint, or one epoch's file of the run) with the card and tokenizer in ``folder``."""
    card = read_json(folder / CARD_FILE)
    name = card.get("policy") if isinstance(card, dict) else None
    if not name:
        raise UserError(f"{folder / CARD_FILE} names no policy (key 'policy'): this is another kind of model")
    plugin = registry.get("policies", name)
    if not (folder / TOKENIZER).is_dir():
        return plugin.load(source, device)
    if tokenizer_loader is None:
        raise UserError(f"the policy {folder} needs its tokenizer, and whoever opened it handed in no loader for it")
    return plugin.load(source, device, tokenizer=tokenizer_loader(folder / TOKENIZER, device))


def find(path: Path) -> Path | None:
    """The folder that holds the policy's card or config: the named one, its ``checkpoint/``, or lerobot-train's own.

    Raises:
        UserError: a run folder whose checkpoint is not there yet, or that never will have one.
    """
    from worldsim.lerobot_policy import checkpoint as lerobot

    for folder in (path, path / "checkpoint"):
        if (folder / CARD_FILE).is_file():
            return folder
    if (path / "config.yaml").is_file():
        if (path / "result.json").is_file() and not (path / "checkpoint").exists():
            raise UserError(f"{path} is a run that trained nothing, so there is no policy in it", ["ls", path])
        raise UserError(f"{path} is an unfinished run: it has no checkpoint/{CARD_FILE} yet", ["ls", path])
    return lerobot.find(str(path)) if path.is_dir() else None


class Renamed:
    """A learned policy whose cameras have other names where it acts.

    Args:
        names: the policy's camera -> the environment's.
    """

    def __init__(self, policy: LearnedPolicy, names: Mapping[str, str]) -> None:
        unknown = [name for name in names if name not in policy.needs.cameras]
        if unknown:
            raise UserError(
                f"rename.{unknown[0]}: the policy has no such camera; it has {', '.join(sorted(policy.needs.cameras))}"
            )
        self.policy, self.names = policy, dict(names)

    @property
    def needs(self) -> PolicyNeeds:
        from dataclasses import replace

        cameras = {self.names.get(name, name): size for name, size in self.policy.needs.cameras.items()}
        return replace(self.policy.needs, cameras=cameras)

    def reset(self, seed: int | None = None) -> None:
        self.policy.reset(seed)

    def fork(self) -> Renamed:
        """Without it, the inner policy's own would be found, which knows other names."""
        return Renamed(self.policy.fork(), self.names)  # type: ignore[attr-defined]

    @property
    def looks_back(self) -> bool:
        """Stated here, because ``isinstance`` with a protocol does not see what :meth:`__getattr__` finds."""
        return bool(getattr(self.policy, "looks_back", False))

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        return self.policy.act(self._as_known(observation))

    def observe(self, observation: Mapping[str, Any]) -> None:
        """As ``act``, under the names that the policy knows; only called where it looks back."""
        self.policy.observe(self._as_known(observation))  # type: ignore[attr-defined]

    def _as_known(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        pixels = dict(observation["pixels"])
        pixels |= {own: observation["pixels"][other] for own, other in self.names.items()}
        return {**observation, "pixels": pixels}

    def __getattr__(self, name: str) -> Any:  # pictures of what it thinks, its chunk's length: the policy's own
        return getattr(self.policy, name)
