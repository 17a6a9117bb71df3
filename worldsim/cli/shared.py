"""The options that every command shares, stated once, and what happens behind each command.

A command file states its own flags and returns them as ``{dotted config key: value}``; None means "not given".
:func:`command` adds the shared options, resolves the config (recipe, then flags, then ``--set``), and runs, prints the
plan of, or launches the job.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from worldsim.core.errors import UserError

Config = Annotated[
    str | None, typer.Option("--config", metavar="NAME|PATH", help="Recipe: a name under configs/, or a file.")
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=VALUE", help="Override one key (repeat).")]
Out = Annotated[str | None, typer.Option("--out", metavar="DIR", help="Output folder; the same command continues there.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], typer.Option("--device", help="Where to compute: auto, cpu, cuda or mps.")
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config, inputs, hardware and cost; stop.")]
Remote = Annotated[bool, typer.Option("--remote", help="Run on Modal instead of here.")]
Gpu = Annotated[str | None, typer.Option("--gpu", metavar="H100:2", help="Remote hardware.")]
Timeout = Annotated[str | None, typer.Option("--timeout", metavar="8h", help="Stop a remote run after this long.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return once the remote run has started.")]
Volume = Annotated[str | None, typer.Option("--volume", metavar="NAME", help="Modal volume to use.")]
Nproc = Annotated[str | None, typer.Option("--nproc", metavar="auto|N", help="Processes on this machine.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@dataclass
class Shared:
    """The shared options as typed."""

    config: str | None
    set: list[str]
    out: str | None
    seed: int
    device: str
    json: bool
    dry_run: bool
    remote: bool
    gpu: str | None
    timeout: str | None
    detach: bool
    volume: str | None
    nproc: str | None
    yes: bool


def _shared_parameters() -> list[inspect.Parameter]:
    """The shared options as parameters of a Typer function, in the order of the contract."""
    options: dict[str, tuple[Any, Any]] = {
        "config": (Config, None),
        "set": (Set, None),
        "out": (Out, None),
        "seed": (Seed, 0),
        "device": (Device, "auto"),
        "json": (Json, False),
        "dry_run": (DryRun, False),
        "remote": (Remote, False),
        "gpu": (Gpu, None),
        "timeout": (Timeout, None),
        "detach": (Detach, False),
        "volume": (Volume, None),
        "nproc": (Nproc, None),
        "yes": (Yes, False),
    }
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(name, kind, default=default, annotation=hint) for name, (hint, default) in options.items()]


def command(app: typer.Typer, name: str, *, job: str | None = None) -> Callable[[Callable[..., dict[str, Any]]], None]:
    """Register ``function(own flags) -> {dotted key: value}`` as the subcommand ``name`` with the shared options.

    Args:
        job: the command's module under ``worldsim.commands`` and folder under ``configs/``, where it is not ``name``.
    """

    def mark(function: Callable[..., dict[str, Any]]) -> None:
        shared_parameters = _shared_parameters()
        shared_names = {parameter.name for parameter in shared_parameters}

        def body(**given: Any) -> int:
            typed: dict[str, Any] = {k: (v if k != "set" else v or []) for k, v in given.items() if k in shared_names}
            shared = Shared(**typed)
            flags = function(**{k: v for k, v in given.items() if k not in shared_names})
            return execute(job or name, flags, shared)

        signature = inspect.signature(function, eval_str=True)
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
        body.__signature__ = inspect.Signature([*own, *shared_parameters])  # type: ignore[attr-defined]
        body.__annotations__ = {p.name: p.annotation for p in [*own, *shared_parameters]}
        body.__doc__, body.__name__ = function.__doc__, function.__name__
        app.command(name)(body)

    return mark


def execute(name: str, flags: dict[str, Any], shared: Shared) -> int:
    """Resolve, then plan, launch or run one command; prints its result. Returns the exit code."""
    from worldsim.cli.resolve import ask, refusal, resolve
    from worldsim.core.console import say
    from worldsim.launch import launch

    with Output(shared.json) as stdout:
        job = resolve(name, flags, shared)
        if shared.dry_run:
            from worldsim.launch.plan import describe, plan_text

            refused = refusal(job)
            if refused:
                say(f"note: as it stands this would be refused: {refused}")
            plan = describe(job)
            print(json.dumps(plan, default=str) if shared.json else plan_text(plan), file=stdout)
            return 0
        try:
            ask(job)
            result = launch(job)
        except (UserError, KeyboardInterrupt) as error:
            if shared.json:
                print(json.dumps(_failed(name, job.out, error), default=str), file=stdout)
            raise
        print(json.dumps(result, default=str) if shared.json else summary(result), file=stdout)
        return 0


def _failed(name: str, out: str, error: UserError | KeyboardInterrupt) -> dict[str, Any]:
    """The JSON object of a command that failed: what the run recorded of it, or the sentence alone."""
    from worldsim.core.files import read_json

    sentence = error.sentence if isinstance(error, UserError) else "interrupted"
    path = Path(out) / "result.json"
    if path.is_file():
        recorded = read_json(path)
        if recorded.get("error") == sentence or (recorded.get("status") == sentence == "interrupted"):
            return {"error": sentence, **recorded}
    status = "failed" if isinstance(error, UserError) else sentence
    empty: dict[str, Any] = {"metrics": {}, "notes": [], "seconds": 0.0}
    return {"status": status, "command": name, "out": out, **empty, "error": sentence}


def summary(result: dict[str, Any]) -> str:
    """A short human summary and the next command to type."""
    lines = [f"{result['command']}: {result['status']} in {result['seconds']:.1f} s -> {result['out']}"]
    if result.get("summary"):
        lines += [f"  {line}" for line in str(result["summary"]).splitlines()]
    lines += [f"  note: {note}" for note in result.get("notes", [])]
    if result.get("next"):
        lines.append(f"next:  {result['next']}")
    return "\n".join(lines)


class Output:
    """``with Output(json) as stdout``: with ``--json`` everything but ``stdout`` goes to stderr, C libraries included."""

    def __init__(self, machine: bool) -> None:
        self.machine = machine

    def __enter__(self) -> Any:
        if not self.machine:
            return sys.stdout
        import os

        sys.stdout.flush()
        self.saved = os.dup(1)
        os.dup2(2, 1)
        self.stream = os.fdopen(os.dup(self.saved), "w")
        self.python_stdout, sys.stdout = sys.stdout, sys.stderr
        return self.stream

    def __exit__(self, *exc: object) -> None:
        if self.machine:
            import os

            self.stream.close()
            sys.stdout = self.python_stdout
            os.dup2(self.saved, 1)
            os.close(self.saved)
