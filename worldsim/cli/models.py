"""``worldsim models``: what is registered, on which shelf, how big, from where."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from worldsim.cli.shared import command


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="What is registered on the shelves.", no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(group, name="models")

    @command(group, "pull", job="models-pull")
    def pull(
        name: Annotated[str | None, typer.Argument(metavar="NAME", help="A base model, e.g. wan2.2-ti2v-5b.")] = None,
        revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    ) -> dict[str, Any]:
        """Fetch a base model's weights into the Hub's cache; with --remote onto the volume."""
        return {"name": name, "revision": revision}

    @command(group, "export", job="models-export")
    def export(
        run: Annotated[
            str | None, typer.Argument(metavar="RUN", help="Run folder of a fine-tuned Wan or a policy.")
        ] = None,
        to: Annotated[str | None, typer.Option(metavar="NAME", help="diffusers, comfyui or lerobot.")] = None,
    ) -> dict[str, Any]:
        """Write a fine-tuned model as diffusers, ComfyUI or LeRobot read it."""
        return {"model": run, "to": to}

    @group.command("list")
    def list_models(
        shelf: Annotated[str | None, typer.Argument(help="One shelf only.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")] = False,
    ) -> None:
        """List every registered format, tokenizer, model, metric, …; reads cards, imports nothing."""
        rows = cards(shelf)
        if as_json:
            print(json.dumps({"models": rows}))
            return
        width = max(len(row["name"]) for row in rows)
        for row in rows:
            size = f"{row['size']}  " if row.get("size") else ""
            print(f"{row['shelf']:<15} {row['name']:<{width}}  {size}{row.get('title', '')}")


def cards(shelf: str | None = None) -> list[dict]:
    """One row per registered name: shelf, name and the literal card of its file."""
    from worldsim.core import registry
    from worldsim.core.errors import UserError, did_you_mean

    if shelf is not None and shelf.replace("-", "_") not in registry.SHELVES:
        raise UserError(f"there is no shelf '{shelf}'{did_you_mean(shelf, registry.SHELVES)}", "worldsim models list")
    shelves = [shelf.replace("-", "_")] if shelf else registry.SHELVES
    return [
        {"shelf": place, "name": name, **(registry.card(place, name) or {})}
        for place in shelves
        for name in registry.names(place)
    ]
