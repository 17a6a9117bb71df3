"""The hint below an error, as words to type: the user's own command line again with some options changed, or ``--help``.

Whoever raises an error knows which value would do, not what was typed around it; ``core.errors.again`` names the keys, and
here, at the door, they are put into the words that were typed. Nothing else that the user said is lost.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from typer._click.core import Command, Parameter

from worldsim.core.errors import AGAIN

PLACE = "DATA"
"""In a command of an error: the dataset that the user named."""


def hint(top: Command, argv: Sequence[str], command: str | None) -> str:
    """What to type after an error whose command is ``command``: typable, quoted, with what was typed kept.

    Args:
        top: the whole program, for its options.
        argv: what was typed after ``worldsim``.
        command: of the error: words as they are (``DATA`` stands for the user's own), ``again key=value …``, or None.
    """
    leaf, path, rest = _leaf(top, argv)
    if command is None:
        return shlex.join(["worldsim", *path, "--help"])
    if command == AGAIN or command.startswith(f"{AGAIN} "):
        changes = [pair.partition("=")[::2] for pair in shlex.split(command)[1:]]
        return shlex.join(["worldsim", *path, *_changed(leaf, rest, changes)])
    data = _positional(leaf, rest)
    return command.replace(f" {PLACE}", f" {shlex.quote(data)}") if data and f" {PLACE}" in command else command


def _leaf(top: Command, argv: Sequence[str]) -> tuple[Command, list[str], list[str]]:
    """The command that was typed, the words that name it, and the words after those."""
    path: list[str] = []
    for word in argv:
        inner = getattr(top, "commands", {}).get(word)
        if inner is None:
            break
        top = inner
        path.append(word)
    return top, path, list(argv[len(path) :])


def _grouped(leaf: Command, words: list[str]) -> list[tuple[Parameter | None, list[str]]]:
    """The typed words, each option together with its value; arguments in the order of the command's own."""
    options = {name: p for p in leaf.params for name in p.opts if name.startswith("-")}
    places = iter([p for p in leaf.params if p.param_type_name == "argument"])
    out: list[tuple[Parameter | None, list[str]]] = []
    words = list(words)
    while words:
        word = words.pop(0)
        found = options.get(word.partition("=")[0])
        if found is not None:
            alone = "=" in word or getattr(found, "is_flag", False) or not words
            out.append((found, [word] if alone else [word, words.pop(0)]))
        else:
            out.append((None if word.startswith("-") else next(places, None), [word]))
    return out


def _positional(leaf: Command, words: list[str]) -> str | None:
    """The dataset that was named, else the only one under ``data/``, which is then the one that was taken."""
    for parameter, group in _grouped(leaf, words):
        if parameter is not None and parameter.param_type_name == "argument" and parameter.name in ("data", "source"):
            return group[0]
    found = list(Path("data").glob("*/worldsim.json"))
    return str(found[0].parent) if len(found) == 1 else None


def _changed(leaf: Command, words: list[str], changes: list[tuple[str, str]]) -> list[str]:
    """The typed words with every changed key replaced where it stands, or added at the end."""
    groups = _grouped(leaf, words)
    by_key = {p.name: p for p in leaf.params if p.name}
    for old_key, value in changes:
        old, _, renamed = old_key.partition("->")
        key = renamed or old
        own = by_key.get(key)
        new = _words(own, key, value)
        at = [i for i, (p, group) in enumerate(groups) if (p is own if own is not None else _sets(p, group, old))]
        for index in at:
            groups[index] = (groups[index][0], [])
        if at:
            groups[at[-1]] = (groups[at[-1]][0], new)
        else:
            groups.append((own, new))
    return [word for _, group in groups for word in group]


def _words(own: Parameter | None, key: str, value: str) -> list[str]:
    """``--frames 20`` where the command has such an option, else ``--set key=20``; ``null`` takes an option away."""
    if own is None:
        return ["--set", f"{key}={value}"]
    if value == "null":
        return []
    if own.param_type_name == "argument":
        return [value]
    name = next(name for name in own.opts if name.startswith("--"))
    return [name] if getattr(own, "is_flag", False) else [name, value]


def _sets(parameter: Parameter | None, group: list[str], key: str) -> bool:
    """Whether these words are ``--set key=…``."""
    if parameter is None or parameter.name != "set":
        return False
    pair = group[1] if len(group) > 1 else group[0].partition("=")[2]
    return pair.partition("=")[0].replace("-", "_") == key
