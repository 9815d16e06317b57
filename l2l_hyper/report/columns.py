"""What a table says: its columns, the protocol above it and the notes below it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..errors import InputError
from ..experiment.config import Experiment
from ..statistics import Interval
from .summary import SEEDS_FOR_INTERVAL, SIGNIFICANT, Row, Summary

__all__ = ["NOTHING", "Column", "Scale", "columns", "describe", "notes"]

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: above it.
        cell: a row to its text.
        note: what it means, below the table.
        is_text: whether it holds no numbers.
        is_score: whether it holds what the rows are ordered by.
        group: columns of a group stay in one table where the screen is too narrow for all.
    """

    title: str
    cell: Callable[[Row], str]
    note: str = ""
    is_text: bool = False
    is_score: bool = False
    group: int = 2


@dataclass(frozen=True)
class Scale:
    """How scores of a table are printed: percent with two digits, others with two digits of the smallest interval."""

    factor: float
    digits: int

    @classmethod
    def of(cls, summary: Summary) -> Scale:
        if summary.metric.percent:
            return cls(summary.factor, 2)
        widths = [row.score.half_width for row in summary.rows if row.score.half_width > 0]
        digits = 1 - math.floor(math.log10(min(widths))) if widths else 4
        return cls(summary.factor, min(max(digits, 0), 9))

    def number(self, value: float | None) -> str:
        return NOTHING if value is None else f"{self.factor * value:.{self.digits}f}"

    def interval(self, value: Interval) -> str:
        return f"{self.number(value.mean)} ± {self.number(value.half_width)}".replace("-", "−")

    def signed(self, value: Interval | None) -> str:
        if value is None:
            return NOTHING
        return f"{self.factor * value.mean:+.{self.digits}f} ± {self.number(value.half_width)}".replace("-", "−")


def columns(summary: Summary) -> list[Column]:
    """The columns that say something: those that are empty, or the same in each of several rows, are left out."""
    return [column for column in _columns(summary) if _says(summary, column)]


def describe(summary: Summary) -> list[str]:
    """What was compared, on which episodes, with which code and where, and what is the same in every row."""
    experiment = summary.experiment
    training = f"trained for {experiment.iterations:,} iterations of {experiment.meta_batch} episodes"
    if experiment.train_seconds is not None:
        training = f"trained for {experiment.train_seconds:g} s in batches of {experiment.meta_batch} episodes"
    per_class = "" if summary.regression else " per class"
    if experiment.train_ways not in (None, experiment.ways):
        training += f", {experiment.train_ways}-way"
    if experiment.train_queries not in (None, experiment.queries):
        training += f", {experiment.train_queries} queries{per_class}"
    seeds = sorted({seed for row in summary.rows for seed in row.seeds})
    same = [column for column in _columns(summary) if not _says(summary, column)]
    values = [f"{column.title} {column.cell(summary.rows[0])}" for column in same]
    values = [value for value in values if not value.endswith(f" {NOTHING}")]
    return [
        f"{experiment.tasksets}, {summary.form}, {experiment.queries} queries{per_class}"
        f"; {experiment.test_episodes:,} test episodes"
        + ("" if summary.chance is None else f"; chance {summary.chance:.3g} %"),
        f"seeds {', '.join(map(str, seeds))}; backbone {_backbone(experiment)}; {training}"
        + ("" if experiment.precision == "float32" else f", {experiment.precision}"),
        f"episodes {summary.manifest_hash[:12]}; commit {', '.join(summary.commits)}; {'; '.join(summary.machines)}",
        *([f"the same in every row: {'; '.join(values)}"] if values else []),
    ]


def notes(summary: Summary, shown: Sequence[Column] | None = None) -> list[str]:
    """What the columns mean, one sentence each."""
    shown = columns(summary) if shown is None else shown
    lines = [column.note for column in shown if column.note]
    if any(row.best for row in summary.rows):
        lines.append(
            "Bold: the best, and those that do not differ from it significantly: paired on the same episodes, "
            f"Holm-corrected, p ≥ {SIGNIFICANT:g}."
        )
    return lines


def _says(summary: Summary, column: Column) -> bool:
    cells = {column.cell(row) for row in summary.rows}
    return (
        column.title == "method" or column.is_score or len(cells) > 1 or len(summary.rows) == 1 and cells != {NOTHING}
    )


def _columns(summary: Summary) -> list[Column]:
    scale, metric, rows = Scale.of(summary), summary.metric, summary.rows
    episodes = f"the {summary.experiment.test_episodes:,} test episodes"
    fewer = f"fewer than {SEEDS_FOR_INTERVAL} seeds"
    seeds_and = f"over training seeds and {episodes} (hierarchical bootstrap)"
    alone = f"over {episodes}, each averaged over seeds"
    compared = [row for row in rows if row.difference is not None]
    baseline = next((row.label for row in rows if row.method == summary.baseline), "")
    sources = dict.fromkeys(row.published.source for row in rows if row.published is not None)
    all_over_seeds = all(row.score_over_seeds for row in rows) and all(row.difference_over_seeds for row in compared)
    only = " How far another training run may land is not in an interval or p that is over episodes alone."
    return [
        Column("method", lambda row: row.label, is_text=True, group=0),
        Column(
            "norm.",
            lambda row: row.normalization,
            "Norm.: the statistics that normalization layers use at test.",
            is_text=True,
            group=0,
        ),
        Column(
            metric.name + " %" * metric.percent,
            lambda row: scale.interval(row.score),
            f"{metric.name.capitalize()}: mean ± 95 % interval "
            + _either([row.score_over_seeds for row in rows], seeds_and, f"(Student t) {alone}", fewer)
            + ("." if metric.higher_is_better else "; lower is better.")
            + only * (not all_over_seeds),
            is_score=True,
            group=0,
        ),
        Column(
            "difference",
            lambda row: scale.signed(row.difference),
            f"Difference: {_points(summary, 'points ')}above {baseline} on the same episodes ± 95 % interval "
            + _either([row.difference_over_seeds for row in compared], seeds_and, f"{alone} (paired t test)", fewer)
            + f"; p: two-sided, Holm-corrected for {len(compared)} comparison{'s' * (len(compared) != 1)}.",
            group=0,
        ),
        Column("p", lambda row: _p_value(row.p_corrected), group=0),
        Column(
            "Mops/query",
            lambda row: _millions(row.multiply_adds_per_query),
            "Mops/query: millions of multiply-adds that a query costs once its task is adapted to.",
            group=1,
        ),
        Column(
            "published %",
            _published,
            f"Published, by others with other code, backbones and splits: {'; '.join(sources)}.",
            group=1,
        ),
        Column(
            "seeds",
            lambda row: scale.number(row.spread.std),
            f"Seeds: standard deviation of the seeds' mean {_plural(metric.name)}{_points(summary, ', in points')}.",
            group=1,
        ),
        Column(
            "params", lambda row: _number(row.parameters.get("meta"), ",d"), "Params: all that meta-training learns."
        ),
        Column("adapt ms", lambda row: _number(row.adaptation_ms, ".1f"), "Adapt: median time to adapt to one task."),
        Column(
            "train s", lambda row: _number(row.training_seconds, ",.0f"), "Train: seconds of training, mean over seeds."
        ),
        Column(
            "episodes",
            lambda row: _number(row.training_episodes, ",.0f"),
            "Episodes: seen in training, mean over seeds.",
        ),
        Column("MB", lambda row: _number(row.peak_memory_mb, ",.0f"), "MB: peak memory of training."),
        Column(
            "ECE %",
            lambda row: _number(None if row.calibration_error is None else 100 * row.calibration_error, ".1f"),
            "ECE: expected calibration error of the test queries, 15 bins.",
        ),
        Column(
            "loss",
            lambda row: _number(row.loss, ".3f"),
            "Loss: mean over the test queries; where it is the cross-entropy, the negative log-likelihood per query.",
        ),
        Column(
            "over seeds",
            lambda row: scale.signed(row.seed_difference),
            "Over seeds: the mean difference of runs with the same seed ± 95 % interval over seeds.",
        ),
    ]


def _backbone(experiment: Experiment) -> str:
    """The backbone with its channels, which not every one has, and its options."""
    from ..backbones import BACKBONES  # loads torch

    has_channels = experiment.channels != Experiment().channels
    # A record may come from anyone: no module that it names is imported.  Nor is every backbone registered here.
    with suppress(InputError):
        has_channels |= ":" not in experiment.backbone and "channels" in BACKBONES[experiment.backbone].options
    channels = [f"{experiment.channels} channels"] if has_channels else []
    return ", ".join([experiment.backbone, *channels, *(f"{k} {v}" for k, v in experiment.backbone_options.items())])


def _either(with_seeds: Sequence[bool], seeds: str, alone: str, fewer: str) -> str:
    """Over what the intervals of several rows are."""
    if not any(with_seeds):
        return alone
    return seeds if all(with_seeds) else f"{seeds}; with {fewer} {alone}"


def _points(summary: Summary, text: str) -> str:
    return text if summary.metric.percent else ""


def _plural(name: str) -> str:
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"


def _p_value(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _published(row: Row) -> str:
    if row.published is None:
        return NOTHING
    if row.published.half_width is None:
        return f"{row.published.accuracy:.1f}"
    return f"{row.published.accuracy:.2f} ± {row.published.half_width:.2f}"


def _millions(count: int | None) -> str:
    """With three digits, or as many as there are before the point."""
    if not count:
        return NOTHING if count is None else "0"
    millions = count / 1e6
    return f"{millions:,.{max(0, 2 - math.floor(math.log10(millions)))}f}"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)
