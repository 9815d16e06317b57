"""Dataclasses and arguments as settings: they declare help text, types and ranges, which are read and checked here."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MinLen

from .errors import InputError
from .registry import unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Count",
    "Depth",
    "Name",
    "Natural",
    "NonNegative",
    "Positive",
    "Seed",
    "Share",
    "Ways",
    "check_fields",
    "checked",
    "checked_arguments",
    "checked_value",
    "defaults",
    "described",
    "hint",
    "hints",
    "parse_pairs",
    "parse_value",
    "tomllib",
]

# This module imports no torch, so that a bad flag is told at once.
Count = Annotated[int, Ge(1), Lt(2**31)]
Natural = Annotated[int, Ge(0), Lt(2**31)]
Ways = Annotated[int, Ge(2), Lt(2**31)]
Depth = Annotated[int, Ge(1), Le(10_000)]
"""Of what is done one after the other, such as layers and gradient steps."""
Seed = Annotated[int, Ge(0), Lt(2**32)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Name = Annotated[str, MinLen(1)]

F = TypeVar("F", bound=Callable[..., Any])


def hints(of: Any) -> dict[str, Any]:
    """The annotated type of each field of a dataclass, or of each argument of a function.

    ``Any`` where an annotation names something that cannot be found.
    """
    return _hints(of)


@functools.lru_cache(maxsize=256)
def _hints(of: Any) -> dict[str, Any]:
    try:
        found = typing.get_type_hints(of, include_extras=True)
    except (NameError, TypeError):
        found = {}
    if dataclasses.is_dataclass(of):
        return {field.name: found.get(field.name, Any) for field in dataclasses.fields(of)}
    return {name: found.get(name, Any) for name in inspect.signature(of).parameters}


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
    types, usual = hints(cls), defaults(cls)
    for name in values:
        if name not in types:
            raise unknown_name(kind, name, types)
    return {name: checked_value(types[name], v, prefix + name, hint(usual, name)) for name, v in values.items()}


def check_fields(instance: Any, kind: str = "setting", prefix: str = "", *, without: Sequence[str] = ()) -> None:
    """Check the fields of a frozen dataclass, but for some; for its ``__post_init__``.

    Raises:
        InputError: as :func:`checked`.
    """
    values = {name: value for name, value in vars(instance).items() if name not in without}
    for name, value in checked(type(instance), values, kind, prefix).items():
        object.__setattr__(instance, name, value)


def checked_arguments(make: F) -> F:
    """The function, whose arguments are checked by its annotations before it is called.

    Raises:
        InputError: by the function, for an argument of another type or out of range.

    Example:
        >>> @checked_arguments
        ... def make(width: Annotated[int, Ge(1)] = 8):
        ...     return width
        >>> make(width=0)
        Traceback (most recent call last):
            ...
        l2l_hyper.errors.InputError: width must be greater than or equal to 1, got 0; try 8
    """
    signature = inspect.signature(make)
    usual = {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}

    @functools.wraps(make)
    def checking(*args: Any, **kwargs: Any) -> Any:
        bound, types = signature.bind(*args, **kwargs), hints(make)
        for name, value in bound.arguments.items():
            bound.arguments[name] = checked_value(types[name], value, name, hint(usual, name))
        return make(*bound.args, **bound.kwargs)

    return checking  # type: ignore[return-value]


def checked_value(annotation: Any, value: Any, name: str, remedy: str = "") -> Any:
    """The value in the annotated type, as a TOML or JSON file may hold it; the text ``none`` stands for ``None``.

    Args:
        annotation: the type, with its range.
        value: what arrived.
        name: what it is called in messages.
        remedy: what to try.

    Raises:
        InputError: for a value of another type, out of its range, or not finite.
    """
    from pydantic import ValidationError

    adapter = _adapter(annotation)
    if isinstance(value, str) and value == "none":
        try:
            return adapter.validate_python(None)
        except ValidationError:
            pass
    try:
        try:
            # JSON in strict mode knows a list as a tuple and a whole number as a float, but no text as a number.
            text = json.dumps(value, default=_plain, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError):  # an object that only Python can give
            return adapter.validate_python(value, strict=True)
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = re.sub(r"^\w+ should", "must", first["msg"])
        raise InputError(
            f"{name} {message[:1].lower()}{message[1:]}, got {_shortened(first['input'])}{remedy and f'; {remedy}'}"
        ) from None


def hint(usual: Mapping[str, Any], name: str) -> str:
    """What to try in the place of a bad value: the default, where there is one."""
    if usual.get(name) is None:
        return "leave it out" if name in usual else ""
    default = usual[name]
    return f"try {','.join(map(str, default)) if isinstance(default, tuple) else default}"


def parse_value(text: str) -> Any:
    """The TOML value that a text spells, or the text itself.

    >>> parse_value("1e-3"), parse_value("true"), parse_value("prototype")
    (0.001, True, 'prototype')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
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


def _plain(value: Any) -> Any:
    """Numbers of numpy or torch as Python's own."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError


def _shortened(value: Any) -> str:
    """What arrived, on one line of a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits, or deeper, than Python prints
        text = f"a {type(value).__name__} too large to print"
    return text if len(text) <= 200 else f"{text[:200]}..."


@functools.lru_cache(maxsize=256)
def _adapter(annotation: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))
