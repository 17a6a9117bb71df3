"""``worldsim robot``: a policy beside a robot, in charge of one, or behind a port."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from worldsim.cli.shared import command


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="Run a policy on a robot, or serve it.", no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(group, name="robot")

    @command(group, "run", job="robot-run")
    def run(
        policy: Annotated[
            str | None, typer.Option(metavar="RUN", help="Run folder, REPO, scripted:NAME, replay:DATA or remote:URL.")
        ] = None,
        robot: Annotated[
            str | None,
            typer.Option(metavar="TYPE", help="fake, so100, so101 or any LeRobot robot; --set robot.port=… its keys."),
        ] = None,
        hz: Annotated[
            float | None, typer.Option(help="Steps per second; the policy's own when not given, else 10.")
        ] = None,
        seconds: Annotated[float | None, typer.Option(metavar="N", help="Stop after N seconds.")] = None,
        mode: Annotated[
            Literal["watch", "shadow", "live", "dream"] | None,
            typer.Option(help="watch sends nothing (default); shadow: a person drives; live sends; dream: in --world."),
        ] = None,
        world: Annotated[str | None, typer.Option(metavar="RUN", help="World model of mode dream.")] = None,
        task: Annotated[str | None, typer.Option(metavar="TEXT", help="Instruction, for policies that read one.")] = None,
    ) -> dict[str, Any]:
        """Watch a robot with a policy, or let it drive; every step is logged as an episode."""
        return {
            "policy": policy,
            "robot.type": robot,
            "hz": hz,
            "seconds": seconds,
            "mode": mode,
            "world": world,
            "task": task,
        }

    @command(group, "serve", job="robot-serve")
    def serve(
        policy: Annotated[
            str | None, typer.Option(metavar="RUN", help="Run folder, REPO, scripted:NAME or replay:DATA.")
        ] = None,
        host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 when not given.")] = None,
        port: Annotated[int | None, typer.Option(help="Port to listen on; 8000 when not given.")] = None,
        action_scale: Annotated[
            str | None, typer.Option(metavar="FILE", help="Bins of a policy that answers with action tokens.")
        ] = None,
        api_key: Annotated[
            str | None, typer.Option(metavar="KEY", help="What clients must send; env:NAME reads it from the environment.")
        ] = None,
    ) -> dict[str, Any]:
        """Answer observations with actions over HTTP and websockets, until stopped."""
        return {"policy": policy, "host": host, "port": port, "action_scale": action_scale, "api_key": api_key}
