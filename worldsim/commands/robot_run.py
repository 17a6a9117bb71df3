"""``worldsim robot run``: a policy beside, or in charge of, a robot; by default it only looks.

Writes ``log/`` step by step (``data/robot_log.py``; ``worldsim convert OUT/log --to lerobot`` reads it), ``film.mp4`` at the
end, and how steady the rate was, beside a bare sleep loop's of the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from worldsim.commands._robot_report import metrics_of, summary_of
from worldsim.core.config import config
from worldsim.core.errors import Interrupted, PartialResult, UserError, again
from worldsim.core.protocols import LearnedPolicy
from worldsim.core.runs import RunContext
from worldsim.core.types import Result

LOCAL = "robot run drives what is connected to this machine, so it cannot run with --remote"
REPEATS = True
"""The same command on the same folder runs again and adds an episode to its log."""


@config
class Config:
    """What to drive, and how carefully.

    Attributes:
        policy: run folder, REPO, ``scripted:NAME[,key=value]``, ``replay:DATA``, ``remote:URL``.
        robot: ``type`` (``fake``, ``so100``, ``so101``, any LeRobot robot) and that robot's own config keys.
        teleop: in ``shadow``: ``type`` and keys of the LeRobot teleoperator that a person drives with; empty when the arm is
            moved by hand.
        discover: a package that registers further robots, cameras or teleoperators with LeRobot.
        hz: steps per second; the policy's own when null, else 10.
        seconds: how long; until stopped when null.
        mode: ``watch`` sends nothing, ``shadow`` lets a person drive, ``live`` sends, ``dream`` acts in ``world``.
        world, world_data, world_episodes, world_camera: ``dream``: run folder of a world model, the dataset whose frames it
            begins with (the model's own when null), which of them, which camera.
        task: instruction for policies that read one.
        rename: the policy's camera -> the robot's.
        execute: rows of a chunk that are sent before the policy is asked again.
        ensemble: temporal ensembling with this coefficient (ACT: 0.01); asks at every step; off when null.
        max_relative_target: how far a target may lie from where the joint is, in its unit: a number or {joint: number}.
        clamp_quantiles: keep targets within the 1 % and 99 % quantiles of the policy's training actions.
        limits: {joint: [least, greatest]} for scripted policies on robots that do not know theirs.
        late_periods: periods that the policy may be late before the robot is stopped.
        max_age: seconds that a camera may show the same picture.
        hold_seconds: how long the robot is held where it is before it is let go.
        bare_seconds: how long the bare sleep loop is measured; at most ``seconds``.
        film: write ``film.mp4``.
    """

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = (
        *("seconds", "execute", "ensemble", "max_relative_target", "clamp_quantiles", "limits", "late_periods", "max_age"),
        *("hold_seconds", "bare_seconds", "film"),
    )

    policy: str = "scripted:sine"
    robot: dict[str, Any]
    teleop: dict[str, Any]
    discover: str | None = None
    hz: float | None = None
    seconds: float | None = None
    mode: Literal["watch", "shadow", "live", "dream"] = "watch"
    world: str | None = None
    world_data: str | None = None
    world_episodes: str | None = None
    world_camera: str | None = None
    task: str | None = None
    rename: dict[str, str]
    execute: int = 1
    ensemble: float | None = None
    max_relative_target: float | dict[str, float] | None = 5.0
    clamp_quantiles: bool = True
    limits: dict[str, tuple[float, float]]
    late_periods: float = 2.0
    max_age: float = 0.5
    hold_seconds: float = 0.5
    bare_seconds: float = 5.0
    film: bool = True

    def __post_init__(self) -> None:
        for key in ("hz", "seconds", "max_age", "execute"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"{key} must be above 0, not {value:g}")
        for key in ("late_periods", "hold_seconds", "bare_seconds"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, but is {getattr(self, key):g}")
        if self.mode == "dream" and self.world is None:
            raise ValueError("mode dream needs a world model: --world RUN")
        if self.teleop and self.mode != "shadow":
            raise ValueError(f"a teleoperator drives in mode shadow, not in {self.mode}")


def question(config: Config) -> str | None:
    """What is asked before anything is connected: a robot that would move is named."""
    kind = config.robot.get("type")
    if config.mode != "live" or kind == "fake":
        return None
    how_long = f"for {config.seconds:g} s" if config.seconds else "until it is stopped"
    where = f" at {config.robot['port']}" if "port" in config.robot else ""
    return f"robot {kind}{where} will move {how_long}, driven by {config.policy}"


def run(config: Config, context: RunContext) -> Result:
    """
    Raises:
        UserError: nothing was connected, or :class:`PartialResult`: something was wrong and stopped the robot.
        Interrupted: Ctrl-C or SIGTERM; the robot was stopped, the log is there.
    """
    from worldsim.commands._robot_session import Session

    session = Session.open(config, context)
    report = session.run()
    metrics = metrics_of(report, session)
    result = Result(
        metrics=metrics, summary=summary_of(report, metrics, context.out), next=_next(report.steps, context.out)
    )
    for note in report.notes:
        context.note(note)
    if report.stopped.by == "interrupt":
        raise Interrupted(result)
    if config.film:
        _film(session, context)
    if report.stopped.fault:
        raise PartialResult(
            f"stopped after {report.steps} steps: {report.stopped.sentence}", _try(report.stopped.by, metrics["hz"]), result
        )
    return result


def _film(session: Any, context: RunContext) -> None:
    """A film that cannot be made must not hide how the run ended."""
    try:
        session.film()
    except UserError as error:
        context.note(f"there is no film: {error.sentence}")


def _next(steps: int, out: Path) -> list[object] | None:
    return ["worldsim", "convert", out / "log", "--to", "lerobot", "--out", out / "lerobot"] if steps > 1 else None


def _try(by: str, hz: float) -> str | None:
    return again(hz=f"{hz / 2:g}") if by == "late" else None


def plan(config: Config, seed: int = 0) -> dict[str, Any]:
    """What would be connected, what the policy needs, and what could be sent; nothing is opened."""
    from worldsim.commands._robot_session import body_of, opened

    if config.mode == "dream":
        return {"mode": "dream", "world": config.world, "world_data": config.world_data, "policy": config.policy}
    body = body_of(config)
    driven: Mapping[str, Any] = {"policy": config.policy, "needs": "it is looked at when it is there"}
    if ":" in config.policy or Path(config.policy).exists():
        policy = opened(config, body, "cpu")
        needs = policy.needs if isinstance(policy, LearnedPolicy) else None
        driven = {"policy": config.policy, "needs": None if needs is None else sorted(needs.cameras)}
    spec = body.action_spec
    sends = {
        "watch": "nothing",
        "shadow": "what the person does" if config.teleop else "nothing",
        "live": "clamped actions",
    }
    return {
        "mode": config.mode,
        "sends": sends[config.mode],
        "robot": body.kind,
        "config": {key: value for key, value in config.robot.items() if key != "type"},
        "cameras": {name: list(size) for name, size in body.cameras.items()},
        "joints": dict(zip(spec.names, spec.units)),
        "actions": f"{spec.mode} {spec.space}",
        "hz": body.fps,
        "max_relative_target": config.max_relative_target,
        **driven,
    }
