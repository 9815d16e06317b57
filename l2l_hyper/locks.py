"""Files that a process holds while it lives; the kernel lets go of them when it ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

__all__ = ["Held", "alone", "open_shared", "open_temporary", "remove_leftovers", "take"]

_OURS = re.compile(r"\..+\.([0-9a-f]{32}\.tmp|held)")


class Held(Exception):
    """Another process holds what was asked for; the message says which."""


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Within the block no other process is in a block of the same path, on whatever computer.

    Raises:
        Held: when another one is.
        OSError: when nothing can be written beside ``path``.
    """
    mark = path.with_name(f".{path.name}.held")
    with _open_held(mark) as file:
        try:
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield
        finally:
            mark.unlink(missing_ok=True)


@contextmanager
def open_temporary(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside ``path`` under a name that no other has, and that name; it is gone after the block.

    Raises:
        OSError: when it cannot be written.
    """
    while True:
        # The name must not end as that of the whole file does: readers glob for that.
        temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
        with suppress(Held):  # remove_leftovers was faster
            file = _open_held(temporary)
            break
    try:
        with file:
            yield file, temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


def open_shared(path: Path) -> BinaryIO:
    """Open a file for reading, together with whoever opens it so; :func:`take` fails for others until it is closed.

    Raises:
        FileNotFoundError: when it is not there.
    """
    file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_nlink:
        return file
    file.close()  # removed in between
    return open_shared(path)


def take(file: BinaryIO) -> bool:
    """Whether no other process has opened a file of :func:`open_shared`, so that it can be removed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return bool(os.fstat(file.fileno()).st_nlink)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed from a folder; those of living processes stay."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if _OURS.fullmatch(name):
                with suppress(OSError), open(folder / name, "r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    (folder / name).unlink()


def _open_held(path: Path) -> BinaryIO:
    while True:
        file = open(path, "a+b")  # noqa: SIM115 - the caller closes it, with which it is let go of
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                raise Held(file.read().decode(errors="replace") or "another process") from None
        except OSError:  # a file system without locks, where nothing can be told from a living process's
            pass
        if os.fstat(file.fileno()).st_nlink:
            file.truncate(0)
            return file
        file.close()  # another process removed it in between
