"""Records of one experiment -> the numbers of its table, one row per method."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from ..errors import InputError
from ..experiment.config import Experiment, Run
from ..experiment.records import Record
from ..experiment.result import MetricInfo
from ..methods import METHODS
from ..settings import defaults
from ..statistics import (
    Interval,
    PairedDifference,
    SeedSpread,
    episode_interval,
    hierarchical_bootstrap,
    holm,
    paired_difference,
    paired_difference_over_seeds,
    seed_spread,
)

__all__ = ["SEEDS_FOR_INTERVAL", "SIGNIFICANT", "Published", "Row", "Summary", "paired", "summarize"]

DEFAULT_BASELINE = "protonet"
SEEDS_FOR_INTERVAL = 3
"""From this many training seeds on, intervals and p-values are over seeds and episodes, not over episodes alone."""
SIGNIFICANT = 0.05
"""Below this p-value a difference is called significant."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """An accuracy that others published, in percent; it stands beside ours and is never one of ours."""

    method: str
    tasksets: str
    ways: int
    shots: int
    accuracy: float
    half_width: float | None
    source: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method of a table; scores and differences are in the units of the metric (accuracies are fractions).

    Attributes:
        method: name of the method.
        label: its name in tables.
        records: its runs, one per seed.
        normalization: the statistics that its normalization layers used.
        best: whether it is the best of several, or does not differ from the best significantly: in a test as that of
            ``difference``, but with the best, corrected by Holm as well.
        score: mean and 95 % interval over the test episodes, from three seeds on over seeds and episodes.
        spread: how far the training seeds lie apart.
        difference: paired with the baseline over episodes, of the seeds that both have (of all, where they have none in
            common), ``None`` for the baseline itself; from three common seeds on over those seeds and episodes.
        difference_over_seeds: whether ``difference`` is over seeds and episodes.
        p_corrected: Holm's correction of ``difference.p_value`` over the rows of the table.
        seed_difference: paired with the baseline over the seeds that both have, ``None`` below two.
        loss: mean loss of the queries, ``None`` where it was not recorded or is not finite.
        adaptation_ms: milliseconds to adapt to one task, median over seeds.
        training_episodes: episodes seen in training, mean over seeds.
        training_seconds: seconds of training, mean over seeds.
        peak_memory_mb: the largest of all seeds.
        parameters: counts by kind: "meta", "backbone", "generated".
        multiply_adds_per_query: what a query costs once its task is adapted to.
        calibration_error: expected calibration error of the queries, mean over seeds.
        published: what others published for this method on this task.
    """

    method: str
    label: str
    records: tuple[Record, ...]
    normalization: str
    best: bool
    score: Interval
    spread: SeedSpread
    difference: PairedDifference | None
    difference_over_seeds: bool
    p_corrected: float | None
    seed_difference: Interval | None
    loss: float | None
    adaptation_ms: float | None
    training_episodes: float | None
    training_seconds: float | None
    peak_memory_mb: float | None
    parameters: dict[str, int]
    multiply_adds_per_query: int | None
    calibration_error: float | None
    published: Published | None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds."""
        return tuple(record.run.seed for record in self.records)

    @property
    def score_over_seeds(self) -> bool:
        """Whether ``score`` has its interval over seeds and episodes."""
        return len(self.records) >= SEEDS_FOR_INTERVAL


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A whole table: what was compared, where, and a row for each method, best first."""

    experiment: Experiment
    metric: MetricInfo
    rows: tuple[Row, ...]
    baseline: str | None
    manifest_hash: str
    commits: tuple[str, ...]
    machines: tuple[str, ...]

    @property
    def factor(self) -> float:
        """What tables and figures multiply scores by."""
        return 100.0 if self.metric.percent else 1.0

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing in percent, ``None`` for other metrics."""
        return 100 / self.experiment.ways if self.metric.name == "accuracy" else None

    @property
    def regression(self) -> bool:
        """Whether queries have values in the place of classes."""
        return all(record.regression for row in self.rows for record in row.records)

    @property
    def support_samples(self) -> str:
        """What the number of shots counts."""
        return "support points" if self.regression else "support samples per class"

    @property
    def form(self) -> str:
        """See :attr:`Record.form`."""
        return self.rows[0].records[0].form

    @property
    def of_any_shots(self) -> str:
        """Tasksets and ways."""
        return self.experiment.tasksets + ("" if self.regression else f", {self.experiment.ways}-way")


def summarize(records: Sequence[Record], baseline: str | None = None) -> Summary:
    """Statistics of the records of one experiment.

    Args:
        records: as :func:`l2l_hyper.compare` returns them.
        baseline: the method that the others are paired with; ProtoNet if not given, where it has records.

    Raises:
        InputError: when the records do not belong together, were not tested, or lack the baseline.
    """
    _require_comparable(records)
    methods = _by_method(records)
    if baseline is None and DEFAULT_BASELINE in methods:
        baseline = DEFAULT_BASELINE
    if baseline is not None and baseline not in methods:
        raise InputError(f"the baseline must be a method with records here, got {baseline}: try {', '.join(methods)}")
    compared = [method for method in methods if baseline is not None and method != baseline]
    differences = {method: _difference(methods[method], methods[str(baseline)]) for method in compared}
    corrected = dict(zip(compared, holm([differences[method][0].p_value for method in compared]), strict=True))
    first, metric = records[0], records[0].result.metric
    best = _best(methods, 1 if metric.higher_is_better else -1)
    published = {figure.method: figure for figure in _published(first)}
    rows = []
    for method, group in methods.items():
        difference, over_seeds = differences.get(method, (None, False))
        row = Row(
            method=method,
            label=group[0].label,
            records=tuple(group),
            normalization=", ".join(sorted({record.result.normalization for record in group})),
            best=method in best,
            score=_score(group),
            spread=seed_spread(_scores(group)),
            difference=difference,
            difference_over_seeds=over_seeds,
            p_corrected=corrected.get(method),
            seed_difference=_over_common_seeds(group, methods[str(baseline)]) if method in differences else None,
            loss=_loss(group),
            adaptation_ms=_over_seeds(group, "adaptation_ms", np.median),
            training_episodes=_over_seeds(group, "episodes", np.mean),
            training_seconds=_over_seeds(group, "seconds_to_train", np.mean),
            peak_memory_mb=_over_seeds(group, "peak_memory_mb", np.max),
            parameters=dict(group[0].result.parameters),
            multiply_adds_per_query=group[0].result.multiply_adds_per_query,
            calibration_error=_over_seeds(group, "calibration_error", np.mean),
            published=published.get(method),
        )
        rows.append(row)
    return Summary(
        experiment=first.run.experiment,
        metric=metric,
        rows=tuple(sorted(rows, key=lambda row: row.score.mean, reverse=metric.higher_is_better)),
        baseline=baseline,
        manifest_hash=first.result.manifest_hash,
        commits=tuple(dict.fromkeys(_commit(record) for record in records)),
        machines=tuple(dict.fromkeys(_machine(record) for record in records)),
    )


def paired(ours: Sequence[Any], theirs: Sequence[Any]) -> tuple[PairedDifference, bool]:
    """The difference of scores of the same seeds and episodes, and whether it is over seeds and episodes."""
    if len(ours) >= SEEDS_FOR_INTERVAL:
        return hierarchical_bootstrap(ours, theirs), True
    return paired_difference(ours, theirs), False


def _by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    names = sorted({record.run.method for record in records})
    return {name: [record for record in records if record.run.method == name] for name in names}


def _require_comparable(records: Sequence[Record]) -> None:
    if not records:
        raise InputError("expected records to summarize, got none: try `l2l-hyper compare` first")
    first = records[0]
    for record in records:
        name, hashes = record.run.name, (record.result.manifest_hash, first.result.manifest_hash)
        if record.run.experiment.spelled_out() != first.run.experiment.spelled_out():
            raise InputError(f"{name} and {first.run.name} are of two experiments: try a folder for each")
        if hashes[0] != hashes[1]:
            raise InputError(
                f"every record must be tested on the same episodes, but the manifest of {name} is {hashes[0][:12]} and "
                f"that of {first.run.name} {hashes[1][:12]}: the data differ; train again into another --out"
            )
        if record.result.metric != first.result.metric:
            raise InputError(
                f"every record must have the same metric, but that of {name} is {record.result.metric.name} and that "
                f"of {first.run.name} {first.result.metric.name}: try a folder for each"
            )
        if not record.scores.size:
            raise InputError(f"{name} was trained but not tested: delete its record and give the same command again")
    for method, group in _by_method(records).items():
        if not all(_same_options(record.run, group[0].run) for record in group):
            raise InputError(f"the seeds of {method} were trained with different options: try a folder for each")


def _same_options(run: Run, other: Run) -> bool:
    """Whether two runs of a method have the same options, where one that came later than a record has its default."""
    name = run.method.partition("@")[0]
    given = {} if run.options == other.options or name not in METHODS else defaults(METHODS[name].options)
    return run.completed(given).options == other.completed(given).options


def _scores(group: Sequence[Record]) -> list[Any]:
    return [record.scores for record in group]


def _score(group: Sequence[Record]) -> Interval:
    scores = _scores(group)
    return episode_interval(scores) if len(scores) < SEEDS_FOR_INTERVAL else hierarchical_bootstrap(scores)


def _common(group: Sequence[Record], baseline: Sequence[Record]) -> tuple[list[Any], list[Any]]:
    """Scores of both for the seeds that both have, in the same order."""
    ours, theirs = ({record.run.seed: record.scores for record in side} for side in (group, baseline))
    seeds = sorted(ours.keys() & theirs.keys())
    return [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]


def _difference(group: Sequence[Record], baseline: Sequence[Record]) -> tuple[PairedDifference, bool]:
    """The difference, and whether it is over seeds and episodes."""
    ours, theirs = _common(group, baseline)
    return paired(ours, theirs) if ours else (paired_difference(_scores(group), _scores(baseline)), False)


def _best(methods: Mapping[str, Sequence[Record]], sign: int) -> set[str]:
    """The best of several methods, and those that do not differ from it significantly."""
    top, *others = sorted(methods, key=lambda method: -sign * float(np.mean(_scores(methods[method]))))
    p_values = holm([_difference(methods[other], methods[top])[0].p_value for other in others])
    return {top, *(m for m, p in zip(others, p_values, strict=True) if not p < SIGNIFICANT)} if others else set()


def _over_common_seeds(group: Sequence[Record], baseline: Sequence[Record]) -> Interval | None:
    ours, theirs = _common(group, baseline)
    return paired_difference_over_seeds(ours, theirs) if ours else None


def _loss(group: Sequence[Record]) -> float | None:
    mean = np.mean([np.mean(np.asarray(record.result.losses or [None], dtype=np.float64)) for record in group])
    return float(mean) if np.isfinite(mean) else None


def _over_seeds(group: Sequence[Record], name: str, reduce: Callable[[list[float]], Any]) -> float | None:
    values = [value for value in (getattr(record.result, name) for record in group) if value is not None]
    return float(reduce(values)) if values else None


def _published(record: Record) -> list[Published]:
    experiment, text = record.run.experiment, resources.files(__package__).joinpath("published.json").read_text("utf-8")
    figures = [Published(**values) for values in json.loads(text)]
    task = (experiment.tasksets, experiment.ways, experiment.shots)
    same = [figure for figure in figures if (figure.tasksets, figure.ways, figure.shots) == task]
    return same if record.result.metric.name == "accuracy" else []


def _commit(record: Record) -> str:
    provenance = record.provenance
    if provenance.commit is None:
        return f"version {provenance.package_version}"
    return provenance.commit[:10] + (" with changes" if provenance.dirty else "")


def _machine(record: Record) -> str:
    environment = record.provenance.environment
    return str(environment.get("gpu") or f"{environment.get('cpu')}, {environment.get('torch_threads')} threads")
