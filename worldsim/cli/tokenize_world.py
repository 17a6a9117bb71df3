"""``worldsim tokenize-world``: discrete codes of every frame, as columns beside the data."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from worldsim.cli.shared import command


def add(app: typer.Typer) -> None:
    @command(app, "tokenize-world")
    def tokenize_world(
        data: Annotated[str | None, typer.Argument(metavar="DATA", help="Dataset folder, any format.")] = None,
        tokenizer: Annotated[
            str | None, typer.Option(metavar="NAME", help="kmeans, fsq-frame or fsq-compressive; see models list.")
        ] = None,
        vision_model: Annotated[
            str | None,
            typer.Option(
                metavar="MODEL", help="For kmeans: random-conv, a Hugging Face repository, a folder, tokenizer:RUN."
            ),
        ] = None,
        num_tokens: Annotated[int | None, typer.Option(metavar="N", help="For kmeans: codes to fit.")] = None,
        checkpoint: Annotated[str | None, typer.Option(metavar="RUN", help="The run that made the tokenizer.")] = None,
        split: Annotated[str | None, typer.Option(metavar="PART", help="all, train or held-out.")] = None,
        camera: Annotated[str | None, typer.Option(metavar="C", help="Camera; the first by name when not given.")] = None,
        fps: Annotated[float | None, typer.Option(help="Frame rate of the model that will read the tokens.")] = None,
        columns: Annotated[str | None, typer.Option(metavar="DIR", help="Where columns go when DATA is read-only.")] = None,
    ) -> dict[str, Any]:
        """Tokenise every frame, as memory-mapped columns."""
        return {
            "data": data,
            "tokenizer": tokenizer,
            "vision_model": vision_model,
            "num_tokens": num_tokens,
            "checkpoint": checkpoint,
            "split": split,
            "camera": camera and camera.replace(",", "+"),
            "fps": fps,
            "columns": columns,
        }
