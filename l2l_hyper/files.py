"""Files that are written whole or not at all, by several processes at once if need be, and JSON in them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import InputError
from .locks import open_temporary

__all__ = [
    "SCHEMA",
    "CannotWrite",
    "cannot_write",
    "create_once",
    "expanded",
    "plain",
    "read_json",
    "replacing",
    "to_json",
    "write_atomically",
]

SCHEMA = 1


class CannotWrite(InputError):
    """The disk does not take what there is to keep."""


def cannot_write(path: Path, error: OSError) -> CannotWrite:
    """The error of a file that cannot be written."""
    return CannotWrite(f"cannot write {path} ({error.strerror}): make room or try another --out")


def expanded(path: str) -> Path:
    """The path with ``~`` as the home folder, as it is where nothing says which that is."""
    return Path(os.path.expanduser(path))


@contextmanager
def replacing(path: Path, publish: Callable[[Path, Path], object] = os.replace) -> Iterator[BinaryIO]:
    """A new file under a temporary name, for writing in pieces; it is called ``path`` once the block has ended.

    A reader, or a process killed halfway, never sees half of it; after an exception nothing of it is left, and what a
    killed process leaves goes with :func:`~l2l_hyper.locks.remove_leftovers`.

    Args:
        path: what the file is called when it is whole.
        publish: gives it that name; ``os.replace`` replaces a file of that name, ``os.link`` raises
            ``FileExistsError`` instead.

    Raises:
        OSError: when the file cannot be written.
    """
    with open_temporary(path) as (file, temporary):
        yield file
        file.flush()
        os.fsync(file.fileno())
        publish(temporary, path)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing, see :func:`replacing`.

    Raises:
        CannotWrite: when the file cannot be written.
    """
    try:
        with replacing(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise cannot_write(path, error) from error


def create_once(path: Path, content: str) -> bool:
    """Create a file with its whole content; ``False`` when it is there already. Of several processes one wins.

    Raises:
        CannotWrite: when the file cannot be written.
    """
    if path.exists():
        return False
    try:
        with replacing(path, publish=os.link) as file:
            file.write(content.encode())
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links, or one that cannot be written at all, which this says.
        write_atomically(path, content)
    return True


def to_json(values: Mapping[str, Any]) -> str:
    """JSON with one line per entry: readable beside hundreds of scores, and small in diffs."""
    lines = (f"  {json.dumps(name)}: {json.dumps(plain(value), allow_nan=False)}" for name, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """The entries of a file written with ``"schema": SCHEMA``, without the schema.

    Raises:
        InputError: when the file cannot be read, is damaged or of another schema; ``remedy`` says what to try.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): try a folder that you may read") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected a JSON file, but {path} is damaged ({error}): {remedy}") from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        arrived = values.get("schema") if isinstance(values, dict) else type(values).__name__
        raise InputError(f"{path} must have schema {SCHEMA}, got {arrived}: read it with the version that wrote it")
    del values["schema"]
    return values


def plain(value: Any) -> Any:
    """The value in JSON's own types, as it comes back from a file; a number that is not finite becomes ``None``."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
