"""A run of a robot put together: body, policy, guard, log; connected late, and disconnected whatever happens."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from worldsim import robots
from worldsim.commands._policy import open_policy, require_fit
from worldsim.core.console import say
from worldsim.core.errors import UserError, again
from worldsim.core.protocols import LearnedPolicy, Policy
from worldsim.core.runs import RunContext
from worldsim.data import robot_log as logs
from worldsim.robots import Body, film, pace
from worldsim.robots.keys import StopKey
from worldsim.robots.loop import Loop, Report, Settings
from worldsim.robots.person import Teleoperator
from worldsim.robots.safety import Guard, Stopped, limits
from worldsim.robots.signals import Signals

HZ = 10.0


@dataclass
class Session:
    """Everything that a run needs, nothing of it connected.

    Attributes:
        folder: of the log. episode: the folder of this run's episode, once there is one. bare: ticks of a bare sleep loop.
    """

    config: Any
    body: Body
    policy: Policy
    settings: Settings
    guard: Guard
    person: Teleoperator | None
    head: logs.Head
    out: Path
    episode: Path | None = None
    bare: list[float] = field(default_factory=list)

    @classmethod
    def open(cls, config: Any, context: RunContext) -> Session:
        """
        Raises:
            UserError: an unknown robot, a policy that is not there or does not fit, a limit that cannot be kept.
        """
        body = body_of(config, context)
        policy = opened(config, body, context.device)
        for name, path in (("policy", config.policy), ("world", config.world)):
            if path is not None and Path(path).is_dir():
                context.inputs[name] = path
        person = Teleoperator(config.teleop, body.action_spec.names, config.discover) if config.teleop else None
        settings = Settings(
            mode=config.mode,
            hz=body.fps,
            steps=None if config.seconds is None else max(1, round(config.seconds * body.fps)),
            seed=context.seed,
            execute=config.execute,
            ensemble=config.ensemble,
            late_periods=config.late_periods,
            max_age=config.max_age,
            hold=config.hold_seconds,
        )
        guard = guard_of(config, body, policy)
        if config.mode in ("live", "dream") and isinstance(policy, LearnedPolicy):
            _say_unknown(policy, body, config, context)
        return cls(config, body, policy, settings, guard, person, _head(config, body, person), context.out)

    def run(self) -> Report:
        """Measure a bare loop, connect, drive, disconnect."""
        signals, notes = Signals(), []
        with signals, StopKey() as key:
            if self.settings.mode != "dream" and self.config.bare_seconds:
                self.bare = self._bare()
            try:
                self.body.connect()
                if self.person is not None:
                    self.person.connect()
                elif self.settings.mode == "shadow" and not self.body.release():
                    say("the robot has no switch for its torque: move it by hand only if it gives way")
                signals.gently()
                report = self._drive(signals, key)
            finally:
                signals.gently()
                problems = [self.body.disconnect(), self.person and self.person.disconnect()]
                notes = [f"disconnecting: {problem}" for problem in problems if problem]
        report.notes += notes
        return report

    def film(self) -> None:
        """``film.mp4`` from the log."""
        if self.episode is None:
            return
        tokenizer = getattr(self.policy, "tokenizer", None)
        pictures: Any = getattr(tokenizer, "pictures", None)
        grid = getattr(tokenizer, "grid", None)
        pictures = np.asarray(pictures.cpu()) if hasattr(pictures, "cpu") else pictures
        film.make(self.episode, self.head, self.out / "film.mp4", pictures, grid or (1, 1))

    def _bare(self) -> list[float]:
        seconds = min(self.config.bare_seconds, self.config.seconds or self.config.bare_seconds)
        with pace.no_garbage_pauses(), pace.first_in_line():
            return pace.bare(self.settings.hz, max(2, round(seconds * self.settings.hz)))

    def _drive(self, signals: Signals, key: StopKey) -> Report:
        def look() -> None:
            if signals.got:
                raise Stopped("interrupt", f"stopped by {signals.got}")
            pressed = key.pressed()
            if pressed:
                raise Stopped("key", f"stopped by the key {pressed}")

        folder = self.out / "log"
        logs.write_head(folder, self.head)
        self.episode = logs.next_episode(folder)
        with ExitStack() as stack:
            log = logs.EpisodeLog(self.episode, backlog=round(self.settings.hz))
            stack.callback(_close_quietly, log)
            say(_ready(self.settings, self.body, key))
            return Loop(self.body, self.policy, self.settings, self.guard, log, look, self.person).run()


def body_of(config: Any, context: RunContext | None = None) -> Body:
    """The robot, not connected; in mode ``dream`` the world model in its place."""
    if config.mode == "dream":
        return _dream(config, context or RunContext("robot-run", Path(".")))
    return robots.make(config.robot, config.hz or HZ, config.task or "", config.limits, config.discover)


def _dream(config: Any, context: RunContext) -> Body:
    from worldsim.commands._dream_env import Wanted, open_dream, require_world
    from worldsim.robots.simulated import SimulatedBody

    world, data = require_world(config.world, config.world_data or _own_data(config.world))
    wanted = Wanted(world, data, episodes=config.world_episodes, camera=config.world_camera)
    env = open_dream(wanted, device=context.device, seed=context.seed, note=context.note)
    if config.hz is not None and abs(config.hz - env.fps) > 1e-6:
        raise UserError(f"{config.world} dreams {env.fps:g} frames per second, not {config.hz:g}", again(hz=env.fps))
    return SimulatedBody(env, context.seed, "dream", config.task or "")


def _own_data(world: str) -> str:
    """The dataset that the world model was trained on, as its run folder says.

    Raises:
        UserError: there is no such model, or it does not say.
    """
    from worldsim.world_models import located

    if not located(world).exists():
        raise UserError(f"there is no run folder and no bundled world model '{world}'", "worldsim models list")
    path = Path(world) / "config.yaml"
    data = (yaml.safe_load(path.read_text(encoding="utf8")) or {}).get("data") if path.is_file() else None
    if not data or not Path(data).exists():
        raise UserError(
            f"a dream begins with recorded frames, and {world} does not say which (or they are gone)",
            again(world_data="DATA"),
        )
    return str(data)


def opened(config: Any, body: Body, device: str) -> Policy:
    """The policy, refused where it does not fit. Without ``hz`` the body takes the policy's own rate.

    Raises:
        UserError: there is no such policy, or its numbers mean something else than the robot's.
    """
    policy = open_policy(config.policy, body, device, rename=config.rename or None, fit=False)  # type: ignore[arg-type]
    if isinstance(policy, LearnedPolicy):
        if config.hz is None and config.mode != "dream" and policy.needs.fps:
            body.fps = float(policy.needs.fps)
            body.action_spec = replace(body.action_spec, rate=body.fps)
        require_fit(policy.needs, body, f"the policy {config.policy}", f"the robot {body.kind}")
    return policy


def guard_of(config: Any, body: Body, policy: Policy) -> Guard:
    """
    Raises:
        UserError: a relative limit is wanted (it is by default) and the robot does not say where its joints are.
    """
    spec = body.action_spec
    limit = limits(config.max_relative_target, spec.names)
    if limit is not None and body.at is None and spec.mode != "delta":
        if config.mode == "live" or config.teleop:
            raise UserError(
                f"the robot {body.kind} does not report the positions of {', '.join(spec.names)}, so no step can be limited",
                again(max_relative_target=None),
            )
        limit = None
    needs = policy.needs if isinstance(policy, LearnedPolicy) and config.clamp_quantiles else None
    low, high = (needs.low, needs.high) if needs else (None, None)
    return Guard(spec.names, low, high, limit, body.at, spec.mode == "delta")


def _head(config: Any, body: Body, person: Teleoperator | None) -> logs.Head:
    sent = config.mode in ("live", "dream") or person is not None
    reached = config.mode == "shadow" and body.at is not None
    return logs.Head(
        robot=body.kind,
        mode=config.mode,
        policy=config.policy,
        done="sent" if sent else "reached" if reached else "none",
        fps=body.fps,
        cameras=body.cameras,
        state_names=body.state_names,
        action_spec=body.action_spec,
        task=body.task_description,
    )


def _say_unknown(policy: LearnedPolicy, body: Body, config: Any, context: RunContext) -> None:
    """What nobody can check is said before it acts."""
    needs = policy.needs
    if "?" in needs.action_spec.units and "?" not in body.action_spec.units:
        units = ", ".join(dict.fromkeys(body.action_spec.units))
        context.note(f"{config.policy} does not say the units of its actions; they are sent as they are, in {units}")
    if config.clamp_quantiles and needs.low is None:
        context.note(f"{config.policy} does not say the range of its training actions; only steps are limited")


def _ready(settings: Settings, body: Body, key: StopKey) -> str:
    does = {
        "watch": "looks on and sends nothing",
        "shadow": "looks on while a person drives",
        "live": "drives",
        "dream": "drives",
    }[settings.mode]
    stop = "q, space, esc or Ctrl-C stops" if key.file is not None else "Ctrl-C stops"
    return f"{settings.mode}: the policy {does}; {body.kind} at {settings.hz:g} Hz; {stop}"


def _close_quietly(log: logs.EpisodeLog) -> None:
    """Only for a run that ended before its loop took the log over: closing twice does nothing."""
    if log.thread.is_alive():
        log.close(stopped_by="defect", why="the loop did not begin")
