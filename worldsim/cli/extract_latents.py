"""``worldsim extract-latents``: latent actions of a policy, or the raw actions, as a column beside the data."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from worldsim.cli.shared import command


def add(app: typer.Typer) -> None:
    @command(app, "extract-latents")
    def extract_latents(
        data: Annotated[str | None, typer.Argument(metavar="DATA", help="Dataset folder.")] = None,
        extractor: Annotated[
            str | None, typer.Option(metavar="NAME", help="Which latent actions; see models list.")
        ] = None,
        policy: Annotated[
            str | None, typer.Option(metavar="REPO|DIR", help="The LeRobot policy whose latents are taken.")
        ] = None,
        checkpoint: Annotated[str | None, typer.Option(metavar="RUN", help="Run of a latent-action model.")] = None,
        mode: Annotated[
            str | None, typer.Option(metavar="chunk|frame", help="Observe once per executed chunk, or at every frame.")
        ] = None,
        columns: Annotated[str | None, typer.Option(metavar="DIR", help="Where columns go when DATA is read-only.")] = None,
    ) -> dict[str, Any]:
        """Extract latent actions for every episode, as a memory-mapped column."""
        return {
            "data": data,
            "extractor": extractor,
            "policy": policy,
            "checkpoint": checkpoint,
            "mode": mode,
            "columns": columns,
        }
