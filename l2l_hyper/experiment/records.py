"""One JSON file per run, in a folder that holds the records of one experiment."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Lt
from numpy.typing import NDArray

from ..errors import InputError
from ..files import SCHEMA, plain, read_json, to_json, write_atomically
from .config import Experiment, Run
from .provenance import Provenance
from .result import Entries, Name, Result

__all__ = [
    "Record",
    "existing_record",
    "make_record",
    "read_record",
    "read_records",
    "require_same",
    "write_record",
]

_REMEDY = "delete it and give the same command again to make it anew"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one run measured, and everything needed to judge or repeat it.

    Attributes:
        run: the configuration.
        label: name of the method in tables.
        provenance: command, commit and environment.
        finished: when the record was made, ISO 8601 in UTC.
        result: what was measured.
    """

    run: Run
    label: str
    provenance: Provenance
    finished: str
    result: Result

    @property
    def scores(self) -> NDArray[np.float64]:
        """Score of every test episode, with shape ``(episodes,)``; empty when the run was not tested."""
        return np.asarray(self.result.scores, dtype=np.float64)

    @property
    def regression(self) -> bool:
        """Whether queries have values in the place of classes."""
        return self.result.calibration_error is None and not self.result.metric.percent

    @property
    def form(self) -> str:
        """What an episode is: "5-way 1-shot", or "5 support points" in regression."""
        e = self.run.experiment
        return f"{e.shots} support points" if self.regression else f"{e.ways}-way {e.shots}-shot"

    def at(self, shots: int) -> Record:
        """The record as if ``shots`` were the experiment's, for the same table of another number of shots.

        Raises:
            InputError: when the run was not tested so.
        """
        if shots == self.run.experiment.shots:
            return self
        for other in self.result.other_shots:
            if other.shots == shots:
                experiment = replace(self.run.experiment, shots=shots)
                measured = {f.name: getattr(other, f.name) for f in fields(other) if f.name != "shots"}
                result = replace(self.result, **measured)
                return replace(self, run=replace(self.run, experiment=experiment), result=result)
        tested = [self.run.experiment.shots, *(other.shots for other in self.result.other_shots)]
        raise InputError(
            f"expected shots that {self.run.name} was tested with, {', '.join(map(str, tested))}, got {shots}: "
            "train it with others among test_shots"
        )


def make_record(run: Run, label: str, provenance: Provenance, result: Result) -> Record:
    """The record of a run that has just finished."""
    finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Record(run=run, label=label, provenance=provenance, finished=finished, result=result)


def write_record(out: Path, record: Record) -> Record:
    """Write ``out/records/<run.name>.json`` and return the record as it reads back.

    Raises:
        InputError: when the file cannot be written.
    """
    about = {"schema": SCHEMA, "run": record.run.to_dict(), "label": record.label, **asdict(record.provenance)}
    path = _record_path(out, record.run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_json({**about, "finished": record.finished, **asdict(record.result)}))
    return read_record(path)


def existing_record(out: Path, run: Run, defaults: Mapping[str, Any] | None = None) -> Record | None:
    """The record of this very run, or ``None`` if it is still to be made.

    Args:
        out: a folder of records.
        run: the run.
        defaults: options of the method that a record may lack, because it was made before they came.

    Raises:
        InputError: when the folder has a record of the same method with other options, or of another experiment.
    """
    options = plain(run.options)
    for record in read_records(out):
        require_same(out, record.run.experiment, run.experiment)
        if record.run.method != run.method:
            continue
        held = record.run.completed(plain(defaults or {})).options
        if held != options:
            raise InputError(
                f"{_record_path(out, record.run)} was made with other options of {run.method} "
                f"({_differences(held, options)}): give the same options or another --out"
            )
        if record.run.seed == run.seed:
            return record
    return None


def read_records(out: Path) -> list[Record]:
    """All records of a folder, by method and seed.

    Raises:
        InputError: when one of them is damaged or cannot be read.
    """
    folder = out / "records"
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read {folder} ({error.strerror}): try a folder that you may read") from error
    records = [read_record(folder / name) for name in names if name.endswith(".json")]
    return sorted(records, key=lambda record: (record.run.method, record.run.seed))


def require_same(out: Path, held: Experiment, wanted: Experiment) -> None:
    """Refuse another experiment than the one that a folder holds.

    Raises:
        InputError: with what differs.
    """
    if held != wanted:
        raise InputError(
            f"{out} holds another configuration ({_differences(asdict(held), asdict(wanted))}): "
            "give the same settings or another --out"
        )


def read_record(path: Path) -> Record:
    """Read one record back.

    Raises:
        InputError: when the file cannot be read, is damaged or of another schema; the message names it.
    """
    values = read_json(path, remedy=_REMEDY)
    try:
        about: _About = _checked(_About, {f.name: values.pop(f.name) for f in fields(_About) if f.name in values})
        run = Run.from_dict(vars(about.run))
        if path.stem != run.name:
            raise ValueError(f"it is the record of {run.name}")
        result: Result = _checked(Result, _by_present_names(values))
        _require_consistent(run, result)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"expected the record of a run, but {path} is damaged ({reason}): {_REMEDY}") from error
    provenance = Provenance(**{f.name: getattr(about, f.name) for f in fields(Provenance)})
    return Record(run=run, label=about.label, provenance=provenance, finished=about.finished, result=result)


@dataclass(frozen=True, kw_only=True)
class _Run(Entries):
    """A run in a file; its settings and options may have the names of earlier versions."""

    experiment: dict[str, Any]
    method: Name
    seed: Annotated[int, Ge(0), Lt(2**32)]
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _About(Entries, Provenance):
    """What a file says beside the result."""

    run: _Run
    label: str
    finished: str


def _checked(cls: Any, values: Mapping[str, Any]) -> Any:
    from pydantic import ValidationError

    try:
        return _adapter(cls).validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


@functools.cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _require_consistent(run: Run, result: Result) -> None:
    """Refuse entries of which each is right and which do not fit together."""
    tested = [(result.scores, result.losses, result.manifest)]
    tested += [(other.scores, other.losses, other.manifest) for other in result.other_shots]
    for scores, losses, manifest in tested:
        if not isinstance(manifest.get("hash"), str):
            raise ValueError("the manifest's hash is not a string")
        if len(scores) not in (0, run.experiment.test_episodes):
            raise ValueError(f"{len(scores)} scores for {run.experiment.test_episodes} test episodes")
        if len(scores) != len(result.scores) or len(losses) not in (0, len(scores)):
            raise ValueError("not every number of shots has as many scores and losses")
        if result.metric.percent and not all(0 <= score <= 1 for score in scores):
            raise ValueError("scores in percent are not all shares between 0 and 1")
    for curve in (result.training, result.validation):
        if any(after.iteration <= before.iteration for before, after in itertools.pairwise(curve)):
            raise ValueError("the iterations of a curve do not ascend")


def _by_present_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Measurements by their present names: all metrics were accuracies before a record named its metric."""
    if "metric" in values:
        return dict(values)
    names = {"accuracies": "scores", "best_validation_accuracy": "best_validation_score"}
    found = {names.get(name, name): value for name, value in values.items() if name != "options"}  # those of the run
    for curve in ("validation", "training"):
        points = [dict(point) for point in found[curve]]
        found[curve] = [{"score": point.pop("accuracy"), **point} for point in points]
    return found


def _record_path(out: Path, run: Run) -> Path:
    return out / "records" / f"{run.name}.json"


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    names = [name for name in {**held, **wanted} if held.get(name, ...) != wanted.get(name, ...)]
    return ", ".join(f"{name} {held.get(name, 'unset')} there, {wanted.get(name, 'unset')} here" for name in names)
