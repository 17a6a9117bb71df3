"""One config world: a frozen dataclass, filled from a recipe, then from flags, then from ``--set a.b=value``.

A recipe is a flat and complete YAML under ``configs/<command>/``. An unknown key is refused with its path and a
did-you-mean; a wrong type with the path and what was expected. The resolved config is saved with every result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from worldsim.core.errors import UserError, again, did_you_mean, nearest

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config[T](cls: type[T]) -> type[T]:
    """Mark a class as a config: frozen, keyword-only, typed; unknown keys and numbers that are not finite are refused."""
    settings = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
    return pydantic_dataclass(frozen=True, kw_only=True, config=settings)(cls)  # type: ignore[return-value]


def recipes_folder() -> Path:
    """``configs/``: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def recipe_names(command: str) -> list[str]:
    return sorted(p.stem for p in (recipes_folder() / command).glob("*.yaml"))


def load_recipe(command: str, name_or_path: str | None) -> tuple[str, dict[str, Any]]:
    """The recipe's short name and its raw values. None means ``default``."""
    name = name_or_path or "default"
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = recipes_folder() / command / f"{name}.yaml"
        if not path.exists():
            known = recipe_names(command)
            raise UserError(
                f"there is no recipe '{name}' for {command}{did_you_mean(name, known)}",
                again(config=next(iter(known), "PATH.yaml")),
            )
    if not path.exists():
        raise UserError(f"the recipe {path} does not exist", ["ls", path.parent])
    try:
        values = yaml.safe_load(path.read_text(encoding="utf8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"the recipe {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"the recipe {path} must be a mapping of keys to values")
    if path.name == "config.yaml" and values.get("command") == command:  # a run's own record is a recipe, too
        values = {key: value for key, value in values.items() if key not in ("command", "seed")}
    return path.stem, values


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """``["a.b=1", "c=x"]`` -> ``{"a.b": 1, "c": "x"}``; values are read as YAML."""
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set {pair} is not of the form key=value", None)
        try:
            out[key.strip().replace("-", "_")] = yaml.safe_load(text) if text != "" else ""
        except yaml.YAMLError as error:
            raise UserError(f"--set {key}: '{text}' is not a valid value: {error}") from error
    return out


def assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    """``assign(values, "a.b", 1)``: sets ``values["a"]["b"]``, making mappings on the way."""
    *parents, leaf = dotted.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    values[leaf] = value


_adapters: dict[type, TypeAdapter] = {}


def _adapter(cls: type) -> TypeAdapter:
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]


def build[T](cls: type[T], values: Mapping[str, Any]) -> T:
    """Values -> config, or a :class:`UserError` with the path of the first wrong key.

    A class with a static ``pick(values) -> class`` stands for several configs, one of which the values choose (``train``).
    """
    cls = picked(cls, values)
    try:
        return _adapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise UserError(*_explain(cls, error)) from None


def picked(cls: Any, values: Mapping[str, Any]) -> Any:
    """The config class that ``values`` fill: ``cls`` itself, or what it picks by them."""
    while hasattr(cls, "pick"):
        cls = cls.pick(values)
    return cls


def _explain(cls: type, error: ValidationError) -> tuple[str, str | None]:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    dotted = ".".join(path)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _fields_at(cls, path[:-1])
        near = nearest(path[-1], known)
        right = again({f"{dotted}->{'.'.join([*path[:-1], near])}": first["input"]}) if near else None
        return f"unknown key '{dotted}'{did_you_mean(path[-1], known)}", right
    if first["type"] in ("missing", "missing_argument"):
        return f"'{dotted}' is missing: give it with --set {dotted}=VALUE or in the recipe", None
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    where = f"'{dotted}' = {first['input']!r}: " if path else ""
    choices = re.findall(r"'([^']*)'", first["ctx"]["expected"]) if first["type"] == "literal_error" else []
    choice = nearest(str(first["input"]), choices) or next(iter(choices), None)
    return f"{where}{message[0].lower()}{message[1:]}", again({dotted: choice}) if choice else None


def _fields_at(cls: Any, path: list[str]) -> list[str]:
    for part in path:
        hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        cls = hints.get(part)
        for arm in typing.get_args(cls):
            if dataclasses.is_dataclass(arm):
                cls = arm
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def to_values(config: Any) -> dict[str, Any]:
    """A config as plain JSON-able values, complete."""
    return _adapter(type(config)).dump_python(config, mode="json")


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(to_values(config), sort_keys=False, allow_unicode=True)


def fingerprint(value: Any) -> str:
    """12 hex digits that identify a config or any JSON-able value: sha256 of its canonical JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = to_values(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
