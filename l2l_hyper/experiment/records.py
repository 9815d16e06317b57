"""One JSON file per run, in a folder that holds the records of one experiment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from ..errors import InputError
from ..files import SCHEMA, create_once, plain, read_json, to_json, write_atomically
from .config import Experiment, Run, renamed
from .provenance import Provenance

__all__ = [
    "ControlScores",
    "MetricInfo",
    "Point",
    "Record",
    "Result",
    "ScoresAtShots",
    "existing_record",
    "make_record",
    "open_folder",
    "read_record",
    "read_records",
    "write_record",
]

_REMEDY = "delete it and give the same command again to make it anew"
_Count = Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """What the scores of a result are.

    Attributes:
        name: as tables print it.
        higher_is_better: which way is better.
        percent: whether scores are shares from 0 to 1, which tables print in percent.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    percent: bool = True


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a training or validation curve.

    Attributes:
        iteration: iterations of training so far.
        seconds: seconds of training so far.
        loss: mean loss; ``None`` where it is not finite.
        score: mean score.
        half_width: half width of the score's 95 % interval over episodes, where there are several.
    """

    iteration: _Count
    seconds: float
    loss: float | None
    score: float
    half_width: float | None = None


@dataclass(frozen=True, kw_only=True)
class ScoresAtShots:
    """What the tested weights reach with another number of shots than the experiment's ``shots``.

    Attributes:
        shots: support samples per class.
        scores: score of every test episode.
        losses: loss of every test episode.
        manifest: what the episodes are.
    """

    shots: Annotated[int, Ge(1)]
    scores: list[float]
    losses: list[float | None]
    calibration_error: float | None = None
    manifest: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ControlScores:
    """What the tested weights reach under a control of the method, such as with what another task generated.

    Attributes:
        control: its name.
        shots: support samples per class.
        scores: score of the first test episodes.
    """

    control: str
    shots: Annotated[int, Ge(1)]
    scores: list[float]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run measured.

    Attributes:
        metric: what the scores are.
        scores: score of every test episode, in the units of the metric (accuracies are fractions); empty when the run
            was not tested.
        losses: loss of every test episode.
        validation: one point per look at the validation episodes.
        training: the episodes trained on between two such looks.
        selected_iteration: iteration whose weights were tested.
        best_validation_score: the validation score that selected it.
        iterations: iterations of training.
        episodes: episodes seen in training.
        seconds_to_train: seconds of training, validation not counted.
        adaptation_ms: median milliseconds to adapt to one task; ``None`` where it was not measured.
        peak_memory_mb: peak memory of training in MiB; ``None`` where the machine could not tell.
        parameters: numbers of parameters: "meta" (all that meta-training learns), "backbone", "generated" (the task's
            own).
        calibration_error: expected calibration error of all test queries, see
            :class:`~l2l_hyper.experiment.evaluation.Calibration`; ``None`` in regression.
        multiply_adds_per_query: what a query costs once its task is adapted to; ``None`` where it was not counted.
        manifest: what the episodes are; two results compare only if its "hash" is equal.
        normalization: the statistics that normalization layers used.
        processes: number of processes that shared the run.
        other_shots: the same for the other ``test_shots``, see :meth:`Record.at`.
        controls: scores under the controls of the method, see :attr:`~l2l_hyper.methods.Method.controls`.
        pretrained: SHA-256 of the file of the weights that training started from, if there was one.
    """

    metric: MetricInfo = field(default_factory=MetricInfo)
    scores: list[float] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    validation: list[Point]
    training: list[Point]
    selected_iteration: _Count
    best_validation_score: float
    iterations: _Count
    episodes: _Count
    seconds_to_train: float
    adaptation_ms: float | None
    peak_memory_mb: float | None
    parameters: dict[str, int]
    multiply_adds_per_query: int | None = None
    calibration_error: float | None = None
    manifest: dict[str, Any]
    normalization: str
    processes: int = 1
    other_shots: list[ScoresAtShots] = field(default_factory=list)
    controls: list[ControlScores] = field(default_factory=list)
    pretrained: str | None = None

    @property
    def manifest_hash(self) -> str:
        """Hash of the class splits and episodes that the run was tested on."""
        return str(self.manifest["hash"])


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
        _require_same(out, record.run.experiment, run.experiment)
        if record.run.method != run.method:
            continue
        held = {**plain(defaults or {}), **record.run.options}
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
        result = _result(run, values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"expected the record of a run, but {path} is damaged ({reason}): {_REMEDY}") from error
    return Record(run=run, label=label, provenance=provenance, finished=finished, result=result)


def _result(run: Run, values: dict[str, Any]) -> Result:
    from pydantic import TypeAdapter, ValidationError

    try:
        result = TypeAdapter(Result).validate_python(_by_present_names(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
    if not isinstance(result.manifest.get("hash"), str):
        raise ValueError("the manifest's hash is not a string")
    if len(result.scores) not in (0, run.experiment.test_episodes):
        raise ValueError(f"{len(result.scores)} scores for {run.experiment.test_episodes} test episodes")
    if any(len(other.scores) != len(result.scores) for other in result.other_shots):
        raise ValueError("not every number of shots has as many scores")
    scores = np.asarray([*result.scores, *(s for other in result.other_shots for s in other.scores)], dtype=np.float64)
    if not np.isfinite(scores).all() or (result.metric.percent and ((scores < 0) | (scores > 1)).any()):
        raise ValueError("the scores are not all finite, or for a share between 0 and 1")
    return result


def _by_present_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Measurements by their present names: all metrics were accuracies before a record named its metric."""
    if "metric" in values:
        return dict(values)
    names = {"accuracies": "scores", "best_validation_accuracy": "best_validation_score"}
    found = {names.get(name, name): value for name, value in values.items()}
    for curve in ("validation", "training"):
        found[curve] = [{**point, "score": point["accuracy"]} for point in found[curve]]
    return found


def _record_path(out: Path, run: Run) -> Path:
    return out / "records" / f"{run.name}.json"


def _read_pin(pin: Path) -> Experiment:
    remedy = "delete it if the records beside it are worth keeping, or try another --out"
    values = read_json(pin, remedy=remedy)
    try:
        return Experiment(**renamed(values["experiment"]))
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
