"""One JSON file per run, in a folder that holds the records of one experiment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.config import Experiment, Run
from ..errors import InputError
from .files import SCHEMA, create_once, plain, read_json, to_json, write_atomically
from .provenance import Provenance

__all__ = ["Record", "existing_record", "open_folder", "read_record", "read_records", "write_record"]

_NUMBERS = ("iterations", "episodes", "seconds_to_train", "adaptation_ms", "peak_memory_mb", "best_validation_accuracy")
_REMEDY = "delete it and give the same command again to make it anew"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one run measured, and everything needed to judge or repeat it.

    Attributes:
        run: the configuration.
        label: name of the method in tables.
        provenance: command, commit and environment.
        finished: when the record was written, ISO 8601 in UTC.
        measured: what :func:`l2l_hyper.engine.train_and_test` returned.
    """

    run: Run
    label: str
    provenance: Provenance
    finished: str
    measured: Mapping[str, Any]

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """Accuracy of every test episode, with shape ``(episodes,)``; empty when the run was not tested."""
        return np.asarray(self.measured.get("accuracies", ()), dtype=np.float64)

    @property
    def manifest_hash(self) -> str:
        """Hash of the class splits and episode indices that the run was tested on."""
        return str(self.measured["manifest"]["hash"])

    def number(self, name: str) -> float | None:
        """One measured number, ``None`` where the machine could not tell."""
        value = self.measured.get(name)
        return None if value is None else float(value)


@contextmanager
def open_folder(out: Path, experiment: Experiment) -> Iterator[Path]:
    """Hold ``out`` for one experiment, pinned in its ``experiment.json``; several processes may hold it at once.

    A block that fails before anything was kept leaves no pin behind, so a corrected command may use the folder.

    Raises:
        InputError: when the folder cannot be used or holds another experiment; nothing is overwritten.
    """
    try:
        (out / "records").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected a folder to write into, got {out} ({error.strerror}): try another --out") from error
    if not os.access(out, os.W_OK):
        raise InputError(f"expected a folder to write into, got {out} (no permission): try another --out")
    for record in read_records(out):
        _require_same(out, record.run.experiment, experiment)
    pin = out / "experiment.json"
    created = create_once(pin, to_json({"schema": SCHEMA, "experiment": asdict(experiment)}))
    try:
        if not created:
            _require_same(out, _read_pin(pin), experiment)
        yield out
    except BaseException:
        if created and [path for path in out.rglob("*") if path.is_file()] == [pin]:
            pin.unlink()
        raise


def write_record(out: Path, run: Run, label: str, provenance: Provenance, measured: Mapping[str, Any]) -> Record:
    """Write ``out/records/<run.name>.json`` and return the record.

    Raises:
        InputError: when the file cannot be written.
    """
    finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
    about = {"schema": SCHEMA, "run": run.to_dict(), "label": label, **asdict(provenance), "finished": finished}
    path = _record_path(out, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_json({**about, **measured}))
    return read_record(path)


def existing_record(out: Path, run: Run) -> Record | None:
    """The record of this very run, or ``None`` if it is still to be made.

    Raises:
        InputError: when the folder has a record of the same method with other options, or of another experiment.
    """
    options = plain(run.options)
    for record in read_records(out):
        _require_same(out, record.run.experiment, run.experiment)
        if record.run.method != run.method:
            continue
        if record.run.options != options:
            raise InputError(
                f"{_record_path(out, record.run)} was made with other options of {run.method} "
                f"({_differences(record.run.options, options)}): give the same options or another --out"
            )
        if record.run.seed == run.seed:
            return record
    return None


def read_records(out: Path) -> list[Record]:
    """All records of a folder, by method and seed.

    Raises:
        InputError: when one of them is damaged.
    """
    records = [read_record(path) for path in (out / "records").glob("*.json")]
    return sorted(records, key=lambda record: (record.run.method, record.run.seed))


def read_record(path: Path) -> Record:
    """Read one record back.

    Raises:
        InputError: when the file is damaged or of another schema; the message names it.
    """
    values = read_json(path, remedy=_REMEDY)
    try:
        run = Run.from_dict(values.pop("run"))
        provenance = Provenance(**{field.name: values.pop(field.name) for field in fields(Provenance)})
        label, finished = str(values.pop("label")), str(values.pop("finished"))
        if path.stem != run.name:
            raise ValueError(f"it is the record of {run.name}")
        _check_measured(run, values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"expected the record of a run, but {path} is damaged ({reason}): {_REMEDY}") from error
    return Record(run=run, label=label, provenance=provenance, finished=finished, measured=values)


def _check_measured(run: Run, values: Mapping[str, Any]) -> None:
    if not isinstance(values["manifest"]["hash"], str):
        raise ValueError("the manifest's hash is not a string")
    for name in _NUMBERS:
        if not isinstance(values.get(name), int | float | None):
            raise ValueError(f"{name} is not a number")
    for point in values["validation"]:
        if not all(isinstance(point[name], int | float) for name in ("iteration", "seconds", "accuracy")):
            raise ValueError("the validation curve is not made of numbers")
    accuracies = values.get("accuracies")
    if accuracies is None:
        return
    if len(accuracies) != run.experiment.test_episodes:
        raise ValueError(f"{len(accuracies)} accuracies for {run.experiment.test_episodes} test episodes")
    if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in accuracies):
        raise ValueError("accuracies are not all between 0 and 1")


def _record_path(out: Path, run: Run) -> Path:
    return out / "records" / f"{run.name}.json"


def _read_pin(pin: Path) -> Experiment:
    remedy = "delete it if the records beside it are worth keeping, or try another --out"
    values = read_json(pin, remedy=remedy)
    try:
        return Experiment(**values["experiment"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"expected the settings of an experiment in {pin}, got {error}: {remedy}") from error


def _require_same(out: Path, held: Experiment, wanted: Experiment) -> None:
    if held != wanted:
        raise InputError(
            f"{out} holds another configuration ({_differences(asdict(held), asdict(wanted))}): "
            "give the same settings or another --out"
        )


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    names = [name for name in {**held, **wanted} if held.get(name, ...) != wanted.get(name, ...)]
    return ", ".join(f"{name} {held.get(name, 'unset')} there, {wanted.get(name, 'unset')} here" for name in names)
