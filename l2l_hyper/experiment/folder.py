"""The folder of a comparison: it is of one experiment, and several processes may work in it at once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from ..files import SCHEMA, cannot_write, create_once, read_json, to_json
from ..locks import Held, alone, open_shared, remove_leftovers, take
from .checkpoint import checkpoint_path
from .config import Experiment, Run, renamed
from .distributed import from_first
from .records import read_records, require_same

__all__ = ["claim", "open_folder"]

_PIN = "experiment.json"
_LOGS = {"progress.log", "tensorboard", "wandb"}
_BELOW = ("records", "checkpoints", "points/*/records", "points/*/checkpoints")


@contextmanager
def open_folder(out: Path, experiment: Experiment) -> Iterator[Path]:
    """Hold ``out`` for one experiment, pinned in its ``experiment.json``; several processes may hold it at once.

    What killed processes left is removed.  A pin stays only once something is kept beside it, so that a corrected
    command may use the folder, whether the first one failed or was killed.

    Raises:
        InputError: when the folder cannot be used or holds another experiment; nothing is overwritten.
    """
    try:
        (out / "records").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected a folder to write into, got {out} ({error.strerror}): try another --out") from error
    if not os.access(out, os.W_OK):
        raise InputError(f"expected a folder to write into, got {out} (no permission): try another --out")
    for folder in (out, *itertools.chain.from_iterable(map(out.glob, _BELOW))):
        remove_leftovers(folder)
    for record in read_records(out):
        require_same(out, record.run.experiment, experiment)
    pin = out / _PIN
    with _pinned(out, experiment) as file:
        try:
            yield out
        except BaseException:
            if _is_empty(out) and take(file):
                pin.unlink()
            raise


@contextmanager
def claim(run: Run, folder: Path | None) -> Iterator[str | None]:
    """Within the block no other process trains this run; where one does, the value says which, else it is ``None``.

    Of several processes that share the run the first claims it.

    Raises:
        CannotWrite: when nothing can be written where its checkpoint lies.
    """
    with ExitStack() as stack:
        yield from_first(lambda: None if folder is None else _claimed(checkpoint_path(folder, run), stack))


def _claimed(path: Path, stack: ExitStack) -> str | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(alone(path))
    except Held as holder:
        return str(holder)
    except OSError as error:
        raise cannot_write(path, error) from error
    return None


def _pinned(out: Path, experiment: Experiment) -> BinaryIO:
    """The pin, shared with other processes until it is closed."""
    pin = out / _PIN
    while True:
        create_once(pin, to_json({"schema": SCHEMA, "experiment": asdict(experiment)}))
        with ExitStack() as stack:
            try:
                file = stack.enter_context(open_shared(pin))
            except FileNotFoundError:  # another process removed it in between
                continue
            held = _read_pin(pin)
            if held == experiment:
                stack.pop_all()
                return file
            if not (_is_empty(out) and take(file)):
                require_same(out, held, experiment)
            pin.unlink()


def _is_empty(out: Path) -> bool:
    """Whether nothing but the pin and logs was kept."""
    return {path.relative_to(out).parts[0] for path in out.rglob("*") if path.is_file()} - _LOGS == {_PIN}


def _read_pin(pin: Path) -> Experiment:
    remedy = "delete it if the records beside it are worth keeping, or try another --out"
    values = read_json(pin, remedy=remedy)
    try:
        return Experiment(**renamed(values["experiment"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"expected the settings of an experiment in {pin}, got {error}: {remedy}") from error
