"""``worldsim robot serve``: a policy behind a port, in the forms of OpenVLA, LAPA and openpi, until it is told to stop.

Writes ``server.json`` (address, process) as soon as it listens, and ``result.json`` (answers by status, inference times)
when it has stopped.
"""

from __future__ import annotations

import os
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator

from worldsim import envs, robots
from worldsim.commands import _policy
from worldsim.commands._action_scale import scaled
from worldsim.core import registry
from worldsim.core.config import config
from worldsim.core.console import say
from worldsim.core.errors import UserError
from worldsim.core.files import read_json, write_json
from worldsim.core.protocols import Policy
from worldsim.core.runs import RunContext, content_digest
from worldsim.core.types import ActionSpec, Result
from worldsim.serving.door import is_local, sealed
from worldsim.serving.limits import Limits
from worldsim.serving.server import PolicyServer
from worldsim.serving.service import Service

LOCAL = "robot serve listens on this machine, so it cannot run with --remote"
REPEATS = True
"""A service: the same command on the same folder serves again."""
SERVER = "server.json"
MIB = 2**20


@config
class Config:
    """What to serve, where, and for whom.

    Attributes:
        policy: a run folder, a LeRobot policy's folder or name on the Hub, or ``scripted:NAME``.
        host: 127.0.0.1 is reached from this machine alone. port: 0 takes a free one, which ``server.json`` names.
        action_scale: bins (LAPA's CSV, or this program's JSON) for a policy whose rows are action tokens.
        api_key: what clients must send; ``env:NAME`` reads it from the environment. Only its digest is kept.
        env: whose action range a scripted policy uses: ``pusht``, ``metaworld:TASK``, or a robot type; the fake robot's when
            null. hz: the rate of that robot.
        allow_paths: a folder whose pictures clients may name by path; null refuses paths.
        rename: a client's key -> the key that is read instead (``observation/exterior_image_1_left: front``); null drops it.
        seconds: stop after so long; null serves until SIGINT or SIGTERM.
        max_body_mb, max_pixels, max_sessions, max_waiting, session_seconds, body_seconds: see ``serving.limits``.
    """

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = (
        *("host", "port", "api_key", "allow_paths", "seconds", "max_body_mb", "max_pixels", "max_sessions"),
        *("max_waiting", "session_seconds", "body_seconds"),
    )

    policy: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    action_scale: str | None = None
    api_key: Annotated[str | None, AfterValidator(sealed)] = None
    env: str | None = None
    hz: float = 10.0
    allow_paths: str | None = None
    rename: dict[str, str | None] = field(default_factory=dict)
    seconds: float | None = None
    max_body_mb: float = 16.0
    max_pixels: int = 2048 * 2048
    max_sessions: int = 64
    max_waiting: int = 64
    session_seconds: float = 600.0
    body_seconds: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port must be between 0 and 65535, but is {self.port}")
        for name in ("hz", "max_body_mb", "max_pixels", "max_sessions", "session_seconds", "body_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, but is {getattr(self, name)}")
        if self.max_waiting < 0 or (self.seconds is not None and self.seconds <= 0):
            raise ValueError("max_waiting must not be negative, and seconds must be more than 0")

    @property
    def limits(self) -> Limits:
        return Limits(
            body=int(self.max_body_mb * MIB),
            pixels=self.max_pixels,
            sessions=self.max_sessions,
            session_seconds=self.session_seconds,
            waiting=self.max_waiting,
            body_seconds=self.body_seconds,
        )


def run(config: Config, context: RunContext) -> Result:
    """Open the policy, listen, serve until told to stop."""
    service = _service(config, context)
    server = PolicyServer(service, config.host, config.port, config.api_key)
    for note in _notes(config):
        context.note(note)

    def ready() -> None:
        facts = {"url": f"http://{server.address}", "websocket": f"ws://{server.address}", "process": os.getpid()}
        write_json(context.out / SERVER, {**facts, "port": server.port, "policy": config.policy})
        for note in context.notes:
            say(f"note: {note}")
        say(f"serving {config.policy} on {facts['url']} (POST /act, websocket /); Ctrl-C stops it")

    try:
        server.run(config.seconds, ready)
    finally:
        _withdraw(context.out / SERVER)
    metrics = service.statistics()
    answers = sum(metrics["answers"].values())
    return Result(
        metrics=metrics, summary=f"{answers} requests answered, {metrics['answers'].get('200', 0)} of them with 200"
    )


def _withdraw(path: Path) -> None:
    """Take this process's address back; another server that has begun in the same folder keeps its own."""
    if path.exists() and read_json(path).get("process") == os.getpid():
        path.unlink()


def _service(config: Config, context: RunContext) -> Service:
    policy, spec = _open(config, context.device)
    needs = getattr(policy, "needs", None)
    digest = content_digest(Path(config.policy)) if config.policy and Path(config.policy).exists() else None
    return Service(
        policy,
        str(config.policy),
        needs,
        spec,
        seed=context.seed,
        limits=config.limits,
        allowed=_folder(config.allow_paths),
        rename=config.rename,
        digest=digest,
    )


def _open(config: Config, device: str) -> tuple[Policy, ActionSpec | None]:
    """The policy, and what its rows mean where it does not say so itself."""
    if not config.policy:
        raise UserError("no policy was named", "worldsim robot serve --policy scripted:sine")
    scripted = config.policy.startswith("scripted:")
    world = _world(config.env or "fake", config.hz) if scripted or config.env else None
    policy = _policy.open_policy(config.policy, world, device)
    if hasattr(policy, "steering"):  # push, wander: it asks the environment where its agent is
        raise UserError(
            f"the policy {config.policy} looks into its environment, not only at what it is shown: it cannot be served",
            "worldsim robot serve --policy scripted:sine",
        )
    if config.action_scale:
        policy = scaled(policy, Path(config.action_scale), config.policy)
    return policy, world.action_spec if world is not None and scripted else None


def _world(name: str, hz: float) -> Any:
    """An environment, or a robot that is described but not connected: what a scripted policy reads its range from."""
    if name.partition(":")[0] in registry.names("envs"):
        return envs.make(name)
    return robots.make({"type": name}, hz)


def _folder(text: str | None) -> Path | None:
    if text is None:
        return None
    folder = Path(text).resolve()
    if not folder.is_dir():
        raise UserError(f"allow_paths: {text} is no folder", ["ls", Path(text).parent])
    return folder


def _notes(config: Config) -> list[str]:
    notes = []
    if not is_local(config.host) and config.api_key is None:
        notes.append(f"--host {config.host} can be reached from other machines and there is no --api-key: anyone may ask")
    if not is_local(config.host) and config.api_key is not None:
        notes.append("the connection is not encrypted: use a tunnel (ssh -L) or a proxy with TLS outside a trusted network")
    if config.allow_paths:
        notes.append(f"clients may name pictures below {config.allow_paths} by their path on this machine")
    return notes


def plan(config: Config, *, seed: int) -> dict[str, Any]:
    """For ``--dry-run``: what would be served where; opens no port."""
    if not config.policy:
        raise UserError("no policy was named", "worldsim robot serve --policy scripted:sine")
    _folder(config.allow_paths)
    return {
        "policy": config.policy,
        "address": f"{config.host}:{config.port}",
        "key": config.api_key is not None,
        "notes": _notes(config),
    }
