"""Dataclasses as settings: a class declares help text, types and ranges; they are read and checked here."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..registry import unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["checked", "checked_value", "defaults", "described", "hints", "parse_pairs", "parse_value"]


def hints(cls: type[Any]) -> dict[str, Any]:
    """The annotated type of each field; ``Any`` where an annotation names something that cannot be found."""
    try:
        found = typing.get_type_hints(cls, include_extras=True)
    except NameError:
        found = {}
    return {field.name: found.get(field.name, Any) for field in dataclasses.fields(cls)}


def described(cls: type[Any]) -> dict[str, str]:
    """What the ``Attributes:`` section of the docstring says of each field, those of base classes included."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): (.+(?:\n {5,}.+)*)", section, re.MULTILINE):
            plain = re.sub(r":\w+:`~?([^`]*)`|``([^`]*)``", r"\1\2", text)
            texts[name] = " ".join(plain.split())
    return {field.name: texts.get(field.name, "") for field in dataclasses.fields(cls)}


def defaults(cls: type[Any]) -> dict[str, Any]:
    """The default of each field that has one."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def checked(cls: type[Any], values: Mapping[str, Any], kind: str, prefix: str = "") -> dict[str, Any]:
    """The values, each of the type and within the range that its field declares.

    Args:
        cls: a dataclass.
        values: values by name of the field.
        kind: what a field is, for the message about a name that is not one: "setting", "option of maml".
        prefix: what stands before the name in messages.

    Raises:
        InputError: for a name that is no field of the class, and for a value of another type or out of range.
    """
    types = hints(cls)
    for name in values:
        if name not in types:
            raise unknown_name(kind, name, types)
    return {name: checked_value(types[name], value, prefix + name) for name, value in values.items()}


def checked_value(annotation: Any, value: Any, name: str) -> Any:
    """The value in the annotated type, as a TOML or JSON file may hold it; the text ``none`` stands for ``None``.

    Raises:
        InputError: for a value of another type, out of its range, or not finite.
    """
    from pydantic import ValidationError

    adapter = _adapter(annotation)
    if value == "none":
        try:
            return adapter.validate_python(None)
        except ValidationError:
            pass
    try:
        try:
            # JSON in strict mode knows a list as a tuple and a whole number as a float, but no text as a number.
            return adapter.validate_json(json.dumps(value), strict=True)
        except TypeError:  # an object that only Python can give
            return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = re.sub(r"^\w+ should", "must", first["msg"])
        raise InputError(f"{name} {message[:1].lower()}{message[1:]}, got {first['input']!r}") from None


def parse_value(text: str) -> Any:
    """The TOML value that a text spells, or the text itself.

    >>> parse_value("1e-3"), parse_value("true"), parse_value("prototype")
    (0.001, True, 'prototype')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def parse_pairs(texts: Sequence[str], flag: str, form: str, example: str) -> dict[str, Any]:
    """Values by key from texts such as ``lr=0.1``.

    Raises:
        InputError: when a text has another form.

    >>> parse_pairs(["maml.lr=1e-3", "maml.steps=5"], "--option", "METHOD.KEY=VALUE", "maml.lr=0.01")
    {'maml.lr': 0.001, 'maml.steps': 5}
    """
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        parts = key.strip().rpartition(".") if "." in form else ("-", "", key.strip())
        if not (equals and parts[0] and parts[2] and value.strip()):
            raise InputError(f"{flag} must be {form}, got {text!r}: try {example}")
        pairs[key.strip()] = parse_value(value)
    return pairs


@functools.lru_cache(maxsize=256)
def _adapter(annotation: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))
