"""``worldsim``: robot episodes into world models, and world models into decisions."""

from __future__ import annotations

import sys

import typer

from worldsim import __version__
from worldsim.cli import (
    again,
    convert,
    doctor,
    evaluate,
    extract_latents,
    finetune_wan,
    infer,
    models,
    rlvr,
    robot,
    runs,
    tokenize_world,
    train,
)
from worldsim.cli.door import through_the_door

app = typer.Typer(
    name="worldsim",
    help="Robot episodes into world models, and world models into decisions.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for door in (
    convert,
    extract_latents,
    tokenize_world,
    train,
    finetune_wan,
    rlvr,
    infer,
    evaluate,
    robot,
    models,
    doctor,
    runs,
):
    door.add(app)


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True)) -> None:
    """Robot episodes into world models, and world models into decisions."""


def main(argv: list[str] | None = None) -> int:
    typed = sys.argv[1:] if argv is None else argv

    def hint(command: str | None) -> str:
        return again.hint(typer.main.get_command(app), typed, command)

    return through_the_door(lambda: app(args=argv, prog_name="worldsim", standalone_mode=False), "--json" in typed, hint)


def entry() -> None:
    sys.exit(main())


if __name__ == "__main__":
    entry()
