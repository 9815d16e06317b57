"""Settings of a command before the engine has seen them: a preset's values under the flags of the command line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["KEYS", "Settings", "combine", "parse_options", "parse_seeds", "read_preset", "unknown"]

# This module imports nothing of the engine, so that a bad flag is told before torch has loaded.
KEYS: Mapping[str, type] = {
    "tasksets": str,
    "ways": int,
    "shots": int,
    "queries": int,
    "train_ways": int,
    "train_queries": int,
    "iterations": int,
    "train_seconds": float,
    "meta_batch": int,
    "validate_every": int,
    "validation_episodes": int,
    "test_episodes": int,
    "split_seed": int,
    "backbone": str,
    "hidden": int,
    "normalization": str,
    "precision": str,
    "methods": list,
    "seeds": list,
    "baseline": str,
    "device": str,
    "memory_limit": float,
    "data_root": str,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user asked for.

    Attributes:
        values: by the names in ``KEYS``, the type being the one given there.
        options: options of each method.
        grids: for each method of a sweep, the values to try of each option.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    grids: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)


def read_preset(path: Path) -> Settings:
    """Settings from a TOML file: the flags of ``compare`` by name, ``[options.METHOD]`` and ``[sweep.METHOD]``.

    Raises:
        InputError: when the file is missing or not such a file.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"expected a preset in TOML, but {path} cannot be read ({reason})") from error
    values: dict[str, Any] = {}
    for name, value in content.items():
        key = name.replace("-", "_")
        if key in ("options", "sweep"):
            continue
        if key not in KEYS:
            raise unknown(f"setting in {path}", name, [*KEYS, "options", "sweep"])
        values[key] = _typed(path, key, value)
    if "iterations" in values and "train_seconds" in values:
        raise InputError(f"{path} has both iterations and train_seconds: keep one")
    return Settings(
        values=values,
        options=_tables(path, "options", content.get("options", {})),
        grids=_grids(path, _tables(path, "sweep", content.get("sweep", {}))),
    )


def combine(preset: Settings, flags: Mapping[str, Any], options: Sequence[str] = ()) -> Settings:
    """The preset with the flags that were given (not ``None``) over it, and ``METHOD.KEY=VALUE`` options over its own.

    Raises:
        InputError: when flags contradict each other or an option cannot be read.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if "iterations" in given and "train_seconds" in given:
        raise InputError("expected either --iterations or --train-seconds, got both: keep one")
    if "methods" in given:
        given["methods"] = _names(given["methods"])
    if "seeds" in given:
        given["seeds"] = parse_seeds(given["seeds"])
    # Length of training is one choice with two names: the flag replaces whichever the preset made.
    replaced = {"iterations", "train_seconds"} if {"iterations", "train_seconds"} & given.keys() else set()
    values = {name: value for name, value in preset.values.items() if name not in replaced}
    merged = {method: dict(table) for method, table in preset.options.items()}
    for method, table in parse_options(options).items():
        if "methods" in given and method not in given["methods"]:
            raise InputError(f"--option is for {method}, which is not among --methods {','.join(given['methods'])}")
        merged[method] = {**merged.get(method, {}), **table}
    return Settings(values={**values, **given}, options=merged, grids=preset.grids)


def parse_options(texts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Options by method from texts such as ``maml.lr=0.1``; a value that is no TOML value is a string.

    Raises:
        InputError: when a text has another form.

    >>> parse_options(["maml.lr=1e-3", "maml.steps=5", "hyper-adapter.start=prototype"])
    {'maml': {'lr': 0.001, 'steps': 5}, 'hyper-adapter': {'start': 'prototype'}}
    """
    options: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        method, dot, key = name.strip().partition(".")
        if not (equals and dot and method and key and value.strip()):
            raise InputError(f"--option must be METHOD.KEY=VALUE, got {text!r}: try maml.lr=0.01")
        try:
            options.setdefault(method, {})[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options.setdefault(method, {})[key] = value.strip()
    return options


def parse_seeds(text: str) -> list[int]:
    """Seeds from a text such as ``0,1,2``.

    Raises:
        InputError: when it is not whole numbers from 0, separated by commas.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--seeds must be whole numbers from 0, separated by commas, got {text!r}: try 0,1,2")
    return list(dict.fromkeys(map(int, parts)))


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not known, with the nearest ones that are."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"try one of {', '.join(known) or '(none)'}"
    return InputError(f"unknown {kind}: {name!r}; {hint}")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(f"--methods must be names separated by commas, got {text!r}: try hyper-adapter,maml,protonet")
    return list(dict.fromkeys(names))


def _typed(path: Path, key: str, value: Any) -> Any:
    expected = KEYS[key]
    if expected is list and isinstance(value, str):
        return parse_seeds(value) if key == "seeds" else _names(value)
    if expected is list:
        if isinstance(value, list) and value and all(_is(entry, int if key == "seeds" else str) for entry in value):
            return list(dict.fromkeys(value))
    elif _is(value, expected):
        return float(value) if expected is float else value
    kind = {int: "a whole number", float: "a number", str: "a string", list: "a list"}[expected]
    if key == "seeds":
        kind = "a list of whole numbers"
    raise InputError(f"{key} in {path} must be {kind}, got {value!r}")


def _is(value: Any, expected: type) -> bool:
    """``isinstance``, but ``True`` is no number and a whole number will do for a float."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float if expected is float else expected)


def _tables(path: Path, name: str, value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        raise InputError(f"{name} in {path} must be tables such as [{name}.maml], got {value!r}")
    return value


def _grids(path: Path, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    for method, table in tables.items():
        for key, values in table.items():
            if not isinstance(values, list) or not values:
                raise InputError(f"{key} in [sweep.{method}] of {path} must be a list of values to try, got {values!r}")
    return {method: dict(table) for method, table in tables.items()}
