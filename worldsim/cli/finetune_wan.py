"""``worldsim finetune-wan``: LoRA fine-tuning of a Wan video model on actions that are aligned per latent frame."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from worldsim.cli.shared import command


def add(app: typer.Typer) -> None:
    @command(app, "finetune-wan")
    def finetune_wan(
        data: Annotated[str | None, typer.Argument(metavar="DATA", help="Dataset folder, any format.")] = None,
        camera: Annotated[str | None, typer.Option(metavar="C[,C]", help="Camera, or several to stack.")] = None,
        fps: Annotated[float | None, typer.Option(help="Frame rate of the clips; must divide the dataset's.")] = None,
        frames: Annotated[int | None, typer.Option(metavar="4k+1", help="Frames per clip.")] = None,
        size: Annotated[str | None, typer.Option(metavar="HxW", help="Pixels of the clips.")] = None,
        model: Annotated[str | None, typer.Option(metavar="NAME|PATH", help="Base model; see models list.")] = None,
        actions: Annotated[str | None, typer.Option(metavar="raw|COLUMN", help="What drives the video.")] = None,
        route: Annotated[str | None, typer.Option(metavar="NAME", help="patch-add, adaln, tokens or worldeval.")] = None,
        columns: Annotated[str | None, typer.Option(metavar="DIR", help="Where columns go when DATA is read-only.")] = None,
    ) -> dict[str, Any]:
        """Fine-tune a Wan video model on robot episodes so that it follows actions."""
        return {
            "data": data,
            "camera": camera and camera.replace(",", "+"),
            "fps": fps,
            "frames": frames,
            "size": size,
            "model": model,
            "actions": actions,
            "route": route,
            "columns": columns,
        }
