"""What a robot's run amounts to: how steady, how late, how often clamped, why it ended."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldsim.data import robot_log as logs
from worldsim.robots.loop import Report
from worldsim.robots.pace import jitter

if TYPE_CHECKING:
    from worldsim.commands._robot_session import Session


def metrics_of(report: Report, session: Session) -> dict[str, Any]:
    """Numbers for ``result.json``; times in ms."""
    hz, thought = session.settings.hz, np.array(report.thought) * 1000
    ours, bare = jitter(report.ticks, hz), jitter(session.bare, hz)
    found: dict[str, Any] = {
        "mode": session.settings.mode,
        "robot": session.body.kind,
        "policy": session.config.policy,
        "hz": hz,
        "steps": report.steps,
        "seconds": round(report.ticks[-1] - report.ticks[0] + 1 / hz, 3) if report.ticks else 0.0,
        "stopped_by": report.stopped.by,
        "why": report.stopped.sentence,
        "realtime": report.realtime,
        "jitter": ours,
        "bare": bare if session.bare else None,
        "overruns": report.overruns,
        "late": report.late,
        "sent": report.sent,
        "clamped": dict(sorted(report.clamped.items())),
        "inference": _inference(report, thought),
        "held": None if report.held is None else report.held.tolist(),
        "log": str(session.out / "log"),
        "episode": session.episode.name if session.episode else None,
    }
    if session.bare:
        found["p99_above_bare_ms"] = round(ours["p99_ms"] - bare["p99_ms"], 4)
    if session.settings.mode == "shadow" and session.episode is not None:
        found["shadow"] = shadow_error(session.episode, session.head)
    return found


def _inference(report: Report, thought: np.ndarray) -> dict[str, float] | None:
    if not len(thought):
        return None
    p50, p99 = np.percentile(thought, [50, 99])
    found = {"first_ms": report.first_thought * 1000, "p50_ms": p50, "p99_ms": p99, "max_ms": thought.max()}
    return {name: round(float(value), 3) for name, value in found.items()}


def shadow_error(episode: Path, head: logs.Head) -> dict[str, Any] | None:
    """How far the policy's wish was from what the person did: mean absolute error per joint, in its unit.

    What was done at step t is what was sent, or, where the joints were moved by hand, where they were at frame t + 1.
    """
    steps = logs.read_steps(episode)
    if head.done == "sent":
        pairs = [(step["wish"], step["sent"]) for step in steps if step.get("wish") and step.get("sent")]
    elif head.done == "reached":
        at = [head.state_names.index(name) for name in head.action_spec.names]
        pairs = [(a["wish"], [b["state"][k] for k in at]) for a, b in pairwise(steps) if a.get("wish")]
    else:
        return None
    if not pairs:
        return None
    wished, done = (np.array(rows, np.float64) for rows in zip(*pairs))
    error = np.abs(wished - done)
    per_joint = {name: round(float(value), 4) for name, value in zip(head.action_spec.names, error.mean(0))}
    return {"steps": len(pairs), "mae": round(float(error.mean()), 4), "per_joint": per_joint}


def summary_of(report: Report, metrics: dict[str, Any], out: Path) -> str:
    """For a person."""
    ours, bare = metrics["jitter"], metrics["bare"]
    beside = f" (a bare sleep loop: {bare['p99_ms']:.2f} ms)" if bare else ""
    lines = [
        f"{report.steps} steps in mode {metrics['mode']}, stopped by {report.stopped.by}: {report.stopped.sentence}",
        f"period error: median {ours['p50_ms']:.2f} ms, 99 % below {ours['p99_ms']:.2f} ms{beside}; {report.overruns} overruns",
    ]
    if report.clamped:
        most = ", ".join(f"{name} {count}" for name, count in report.clamped.most_common(3))
        lines.append(f"clamped steps: {most}")
    shadow = metrics.get("shadow")
    if shadow:
        lines.append(f"beside what was done: mean absolute error {shadow['mae']:g} over {shadow['steps']} steps")
    return "\n".join([*lines, f"log: {out / 'log'}"])
