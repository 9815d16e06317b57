"""Records of one experiment -> the numbers of its table, one row a method."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from ..engine.config import Experiment
from ..errors import InputError
from .records import Record
from .statistics import (
    Interval,
    PairedDifference,
    SeedSpread,
    episode_interval,
    holm,
    paired_difference,
    paired_difference_over_seeds,
    seed_spread,
)

__all__ = ["Published", "Row", "Summary", "by_method", "summarize"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure that others published, in percent; it stands beside ours and is never one of ours."""

    method: str
    tasksets: str
    ways: int
    shots: int
    accuracy: float
    half_width: float | None
    source: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method of a table; accuracies and differences are fractions.

    Attributes:
        accuracy: mean and 95 % interval over the test episodes.
        spread: how far the training seeds lie apart.
        difference: paired with the baseline over episodes, ``None`` for the baseline itself.
        p_corrected: Holm's correction of ``difference.p_value`` over the rows of the table.
        seed_difference: paired with the baseline over the seeds both have, ``None`` below two.
        adaptation_ms: milliseconds to adapt to a task, median over seeds.
        training_episodes: episodes seen in training, mean over seeds.
        training_seconds: seconds of training, mean over seeds.
        peak_memory_mb: the largest of all seeds.
        parameters: counts by kind: "meta", "backbone", "generated".
    """

    method: str
    label: str
    normalization: str
    seeds: tuple[int, ...]
    accuracy: Interval
    spread: SeedSpread
    difference: PairedDifference | None
    p_corrected: float | None
    seed_difference: Interval | None
    adaptation_ms: float | None
    training_episodes: float | None
    training_seconds: float | None
    peak_memory_mb: float | None
    parameters: dict[str, int]
    published: Published | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A whole table: what was compared, where, and a row for each method, best first."""

    experiment: Experiment
    rows: tuple[Row, ...]
    baseline: str | None
    manifest_hash: str
    commits: tuple[str, ...]
    machines: tuple[str, ...]


def summarize(records: Sequence[Record], baseline: str | None) -> Summary:
    """Statistics of the records of one experiment; ``baseline`` names the method that the others are paired with.

    Raises:
        InputError: when the records do not belong together, were not tested, or lack the baseline.
    """
    _require_comparable(records)
    methods = by_method(records)
    if baseline is not None and baseline not in methods:
        raise InputError(f"the baseline must be a method with records here, got {baseline}: try {', '.join(methods)}")
    tables = {method: np.stack([record.accuracies for record in group]) for method, group in methods.items()}
    compared = [method for method in methods if baseline is not None and method != baseline]
    differences = {method: paired_difference(tables[method], tables[str(baseline)]) for method in compared}
    corrected = dict(zip(compared, holm([differences[method].p_value for method in compared]), strict=True))
    experiment = records[0].run.experiment
    published = {figure.method: figure for figure in _published(experiment)}
    rows = [
        Row(
            method=method,
            label=group[0].label,
            normalization=", ".join(sorted({str(record.measured["normalization"]) for record in group})),
            seeds=tuple(record.run.seed for record in group),
            accuracy=episode_interval(tables[method]),
            spread=seed_spread(tables[method]),
            difference=differences.get(method),
            p_corrected=corrected.get(method),
            seed_difference=_over_common_seeds(group, methods[baseline]) if baseline in methods else None,
            adaptation_ms=_over_seeds(group, "adaptation_ms", np.median),
            training_episodes=_over_seeds(group, "episodes", np.mean),
            training_seconds=_over_seeds(group, "seconds_to_train", np.mean),
            peak_memory_mb=_over_seeds(group, "peak_memory_mb", np.max),
            parameters=dict(group[0].measured["parameters"]),
            published=published.get(method),
        )
        for method, group in methods.items()
    ]
    return Summary(
        experiment=experiment,
        rows=tuple(sorted(rows, key=lambda row: -row.accuracy.mean)),
        baseline=baseline,
        manifest_hash=records[0].manifest_hash,
        commits=tuple(dict.fromkeys(_commit(record) for record in records)),
        machines=tuple(dict.fromkeys(_machine(record) for record in records)),
    )


def by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records grouped by the name of their method, in alphabetical order."""
    names = sorted({record.run.method for record in records})
    return {name: [record for record in records if record.run.method == name] for name in names}


def _require_comparable(records: Sequence[Record]) -> None:
    if not records:
        raise InputError("expected records to summarize, got none: try `l2l-hyper compare` first")
    first = records[0]
    for record in records:
        name = record.run.name
        if record.run.experiment != first.run.experiment:
            raise InputError(f"{name} and {first.run.name} are of two experiments: try a folder for each")
        if record.manifest_hash != first.manifest_hash:
            raise InputError(
                f"every record must be tested on the same episodes, but the manifest of {name} is "
                f"{record.manifest_hash[:12]} and that of {first.run.name} {first.manifest_hash[:12]}: "
                "the data differ; train again into another --out"
            )
        if not record.accuracies.size:
            raise InputError(f"{name} was trained but not tested: delete its record and give the same command again")
    for method, group in by_method(records).items():
        if any(record.run.options != group[0].run.options for record in group):
            raise InputError(f"the seeds of {method} were trained with different options: try a folder for each")


def _over_seeds(group: Sequence[Record], name: str, reduce: Callable[[list[float]], Any]) -> float | None:
    values = [value for value in (record.number(name) for record in group) if value is not None]
    return float(reduce(values)) if values else None


def _over_common_seeds(group: Sequence[Record], baseline: Sequence[Record]) -> Interval | None:
    if group[0].run.method == baseline[0].run.method:
        return None
    ours, theirs = ({record.run.seed: record.accuracies for record in side} for side in (group, baseline))
    common = sorted(ours.keys() & theirs.keys())
    if len(common) < 2:
        return None
    return paired_difference_over_seeds([ours[seed] for seed in common], [theirs[seed] for seed in common])


def _published(experiment: Experiment) -> list[Published]:
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    figures = [Published(**values) for values in json.loads(text)]
    task = (experiment.tasksets, experiment.ways, experiment.shots)
    return [figure for figure in figures if (figure.tasksets, figure.ways, figure.shots) == task]


def _commit(record: Record) -> str:
    provenance = record.provenance
    if provenance.commit is None:
        return f"version {provenance.package_version}"
    return provenance.commit[:10] + (" with changes" if provenance.dirty else "")


def _machine(record: Record) -> str:
    environment = record.provenance.environment
    return str(environment.get("gpu") or f"{environment.get('cpu')}, {environment.get('torch_threads')} threads")
