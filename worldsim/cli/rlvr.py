"""``worldsim rlvr``: reinforcement of a token world model with rewards that are measured on its decoded frames."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from worldsim.cli.shared import command


def add(app: typer.Typer) -> None:
    @command(app, "rlvr")
    def rlvr(
        data: Annotated[str | None, typer.Argument(metavar="DATA", help="Dataset folder, any format.")] = None,
        model: Annotated[str | None, typer.Option(metavar="RUN", help="Run folder of a token world model.")] = None,
        reward: Annotated[str | None, typer.Option(metavar="SUM", help="Rewards: mae+lpips, 0.5*mse+repetition, …")] = None,
        group_size: Annotated[int | None, typer.Option(metavar="N", help="Futures per scene (default 16).")] = None,
        camera: Annotated[str | None, typer.Option(metavar="C[,C]", help="Camera; the model's own when not given.")] = None,
        columns: Annotated[str | None, typer.Option(metavar="DIR", help="Where columns go when DATA is read-only.")] = None,
    ) -> dict[str, Any]:
        """Improve a token world model by what its imagined frames look like beside the truth."""
        return {
            "data": data,
            "model": model,
            "reward": reward,
            "group_size": group_size,
            "camera": camera and camera.replace(",", "+"),
            "columns": columns,
        }
