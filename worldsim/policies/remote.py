"""A policy that runs elsewhere: ``remote:http://HOST:PORT`` or ``remote:ws://HOST:PORT``."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import numpy as np

from worldsim.core.errors import UserError, did_you_mean
from worldsim.core.protocols import Environment
from worldsim.core.registry import register
from worldsim.core.types import ActionSpec, PolicyNeeds
from worldsim.serving.client import START, Address, Line, dial, is_ours

CARD = {
    "title": "A policy on a server: remote:http://HOST:PORT (REST) or remote:ws://HOST:PORT (openpi's websocket)",
    "source": "worldsim",
    "size": "0",
    "license": "Apache-2.0",
}
KEY = "WORLDSIM_API_KEY"
"""The environment variable that holds the API key, so that it stands in no command and in no record."""


@register("policies")
class Remote:
    """Asks a server for every chunk. An episode is the server's session: nobody else's frames are in its memory.

    Args:
        address: where, and how long to wait. env: where the rows are sent, whose width they must have; None checks nothing.

    Attributes:
        looks_back: whether the served policy must be shown every frame (:meth:`observe`).
        needs: what the served policy was trained on; there only where the server says it.
    """

    needs: PolicyNeeds

    def __init__(self, address: Address, env: Environment | None = None) -> None:
        self.address, self.env = address, env
        self.line: Line = dial(address)
        self.begin: dict[str, Any] = {"reset": True}
        self.lost = False
        self.looks_back = is_ours(self.line.metadata) and self.line.metadata.get("looks_back") is True
        self.spec, needs = _meaning(self.line.metadata, address.url)
        if needs is not None:
            self.needs = needs
        elif self.spec is not None and env is not None:
            self.spec.require(env.action_spec, mine=address.url, theirs="the environment")

    @classmethod
    def create(cls, name: str, env: Environment | None, **options: Any) -> Self:
        """``http://HOST:PORT`` or ``ws://HOST:PORT``, with ``?seconds=5`` for another patience than 30 s per answer.

        Raises:
            UserError: no such address, nobody there, or an answer that the environment cannot take.
        """
        parts = urlsplit(name)
        asked = {**dict(parse_qsl(parts.query)), **{key: str(value) for key, value in options.items()}}
        unknown = sorted(set(asked) - {"seconds"})
        if unknown:
            raise UserError(f"remote:{name}: unknown option '{unknown[0]}'{did_you_mean(unknown[0], ['seconds'])}", START)
        try:
            seconds = float(asked.get("seconds", 30.0))
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < 1e6:
            raise UserError(f"remote:{name}: seconds={asked['seconds']} is not a number of seconds above 0", START)
        url = urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")).rstrip("/")
        return cls(Address(url, seconds, os.environ.get(KEY) or None), env)

    @classmethod
    def tiny(cls, env: Environment) -> Self:
        """A real server in a thread of this process, on a free port, with a policy that sends noise."""
        from worldsim.policies.scripted import Scripted
        from worldsim.serving.server import PolicyServer
        from worldsim.serving.service import Service

        server = PolicyServer(Service(Scripted.tiny(env), "scripted:random", action_spec=env.action_spec)).__enter__()
        policy = cls.create(f"http://{server.address}", env)
        weakref.finalize(policy, server.stop)
        return policy

    def reset(self, seed: int | None = None) -> None:
        """The next question begins an episode; a line that was lost is opened again."""
        if self.lost:
            self.line.close()
            self.line, self.lost = dial(self.address), False
        self.begin = {"reset": True} if seed is None else {"reset": True, "seed": int(seed)}

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """float32 ``[K, A]``, the served policy's own rows, bit for bit.

        Raises:
            UserError: no answer in time, a refusal in the server's words, or rows that the environment cannot take.
        """
        self.lost = True
        rows = self.line.ask(observation, self.begin)
        self.lost, self.begin = False, {}
        width = self.env.action_spec.dim if self.env is not None else (self.spec.dim if self.spec else rows.shape[1])
        if rows.shape[1] != width:
            raise UserError(f"{self.address.url} gave rows of {rows.shape[1]} numbers; {width} are wanted")
        return rows

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Show the server a frame on which it is not asked to act."""
        self.lost = True
        self.line.tell(observation, self.begin)
        self.lost, self.begin = False, {}

    def fork(self) -> Self:
        """Another line to the same server."""
        return type(self)(self.address, self.env)

    def close(self) -> None:
        self.line.close()


def _meaning(metadata: Mapping[str, Any], url: str) -> tuple[ActionSpec | None, PolicyNeeds | None]:
    """What the rows of a server of this program mean, and what its policy was trained on; None where it does not say."""
    if not is_ours(metadata) or metadata.get("action_spec") is None:
        return None, None
    try:
        spec = ActionSpec.from_json(metadata["action_spec"])
        return spec, None if metadata.get("cameras") is None else _needs(metadata, spec)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        version = metadata.get("version")
        raise UserError(f"{url} runs worldsim {version}, whose metadata this version does not read: {error!r}") from error


def _needs(metadata: Mapping[str, Any], spec: ActionSpec) -> PolicyNeeds:
    cameras = {name: (int(size[0]), int(size[1])) for name, size in metadata["cameras"].items()}
    low, high = (None if metadata.get(k) is None else np.array(metadata[k], np.float32) for k in ("low", "high"))
    return PolicyNeeds(cameras, tuple(metadata.get("state_names") or ()), spec, float(metadata["fps"]), low, high)
