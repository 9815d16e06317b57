"""JSON files that are written whole or not at all, by several processes at once if need be."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

__all__ = ["SCHEMA", "create_once", "plain", "read_json", "to_json", "write_atomically"]

SCHEMA = 1


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: a reader, or a process killed halfway, never sees half of it.

    Raises:
        InputError: when the file cannot be written.
    """
    temporary = _temporary(path)
    try:
        _write(temporary, content)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): make room or try another --out") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def create_once(path: Path, content: str) -> bool:
    """Create a file with its whole content; ``False`` when it is there already. Of several processes one wins.

    Raises:
        InputError: when the file cannot be written.
    """
    if path.exists():
        return False
    temporary = _temporary(path)
    try:
        _write(temporary, content)
        os.link(temporary, path)  # unlike a rename, a link never replaces what another process has just put there
        return True
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links, or no writing at all, which this tells.
        write_atomically(path, content)
        return True
    finally:
        with suppress(OSError):
            temporary.unlink()


def to_json(values: Mapping[str, Any]) -> str:
    """JSON with one line per entry: readable beside hundreds of accuracies, and kind to diffs."""
    lines = (f"  {json.dumps(name)}: {json.dumps(plain(value), allow_nan=False)}" for name, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """The entries of a file written with ``"schema": SCHEMA``, without the schema.

    Raises:
        InputError: when the file is damaged or of another schema; ``remedy`` says what to try.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"expected a JSON file, but {path} cannot be read ({error}): {remedy}") from error
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


def _temporary(path: Path) -> Path:
    # The name must not end in .json: readers glob for that.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _write(path: Path, content: str | bytes) -> None:
    with open(path, "xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
