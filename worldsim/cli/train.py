"""``worldsim train``: anything trainable, chosen by its recipe."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from worldsim.cli.shared import command


def add(app: typer.Typer) -> None:
    @command(app, "train")
    def train(
        data: Annotated[str | None, typer.Argument(metavar="DATA", help="Dataset folder, any format.")] = None,
        camera: Annotated[str | None, typer.Option(metavar="C", help="Camera; the first by name when not given.")] = None,
        fps: Annotated[float | None, typer.Option(help="Frame rate to learn; must divide the dataset's.")] = None,
        size: Annotated[str | None, typer.Option(metavar="HxW", help="Pixels of the frames.")] = None,
        tokenizer: Annotated[
            str | None, typer.Option(metavar="NAME|RUN", help="Which tokenizer to train, or whose tokens to learn.")
        ] = None,
        columns: Annotated[str | None, typer.Option(metavar="DIR", help="Where columns go when DATA is read-only.")] = None,
    ) -> dict[str, Any]:
        """Train what the recipe names: tokenizers, token world models, …"""
        return {
            "data": data,
            "camera": camera and camera.replace(",", "+"),
            "fps": fps,
            "size": size,
            "tokenizer": tokenizer,
            "columns": columns,
        }
