"""A summary as a table: on the screen, in Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from tabulate import tabulate

from ..errors import InputError
from ..experiment.config import Experiment
from ..statistics import Interval
from ..terminal import one_line
from .escape import for_csv, for_latex, for_markdown, for_screen
from .summary import SEEDS_FOR_INTERVAL, Row, Summary

__all__ = ["describe", "notes", "print_summary", "to_csv", "to_latex", "to_markdown"]

NOTHING = "–"


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[Row], str]
    group: int = 0  # columns of a group stay in one table where the screen is too narrow for all


@dataclass(frozen=True)
class _Scale:
    """How scores of a table are printed: percent with two digits, others with two digits of the smallest interval."""

    factor: float
    digits: int

    @classmethod
    def of(cls, summary: Summary) -> _Scale:
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


def describe(summary: Summary) -> list[str]:
    """What was compared, on which episodes, with which code and where, one line each."""
    experiment = summary.experiment
    training = f"trained for {experiment.iterations:,} iterations of {experiment.meta_batch} episodes"
    if experiment.train_seconds is not None:
        training = f"trained for {experiment.train_seconds:g} s in batches of {experiment.meta_batch} episodes"
    if experiment.train_ways not in (None, experiment.ways):
        training += f", {experiment.train_ways}-way"
    if experiment.train_queries not in (None, experiment.queries):
        training += f", {experiment.train_queries} queries per class"
    seeds = sorted({seed for row in summary.rows for seed in row.seeds})
    return [
        f"{experiment.tasksets}, {experiment.ways}-way {experiment.shots}-shot, {experiment.queries} queries per class"
        f"; {experiment.test_episodes:,} test episodes"
        + ("" if summary.chance is None else f"; chance {summary.chance:.3g} %"),
        f"seeds {', '.join(map(str, seeds))}; backbone {_backbone(experiment)}; {training}"
        + ("" if experiment.precision == "float32" else f", {experiment.precision}"),
        f"episodes {summary.manifest_hash[:12]}; commit {', '.join(summary.commits)}; {'; '.join(summary.machines)}",
    ]


def notes(summary: Summary) -> list[str]:
    """What the columns mean, one sentence each."""
    metric, episodes = summary.metric, f"the {summary.experiment.test_episodes:,} test episodes"
    better = "" if metric.higher_is_better else "; lower is better"
    seeds_and = f"over training seeds and {episodes} (hierarchical bootstrap)"
    fewer = f"fewer than {SEEDS_FOR_INTERVAL} seeds"
    alone = f"over {episodes}, each averaged over seeds"
    lines = [
        f"{metric.name.capitalize()}: mean ± 95 % interval "
        + _either([row.score_over_seeds for row in summary.rows], seeds_and, f"(Student t) {alone}", fewer)
        + f"{better}.",
        f"Seeds: standard deviation of the seeds' mean {_plural(metric.name)}{_points(summary, ', in points')}.",
    ]
    compared = [row for row in summary.rows if row.difference is not None]
    if summary.baseline is not None:
        label = next(row.label for row in summary.rows if row.method == summary.baseline)
        over = _either([row.difference_over_seeds for row in compared], seeds_and, f"{alone} (paired t test)", fewer)
        lines.append(
            f"Difference: {_points(summary, 'points ')}above {label} on the same episodes ± 95 % interval {over}; p: "
            f"two-sided, Holm-corrected for {len(compared)} comparison{'s' * (len(compared) != 1)}."
        )
    if not all(row.difference_over_seeds for row in compared):
        lines.append("How far another training run may land is not in an interval or p that is over episodes alone.")
    if any(row.seed_difference is not None for row in summary.rows):
        lines.append("Over seeds: the mean difference of runs with the same seed ± 95 % interval over seeds.")
    lines.append(
        "Norm.: the statistics that normalization layers use at test. Loss: mean over the test queries; where it is "
        "the cross-entropy, the negative log-likelihood per query. Adapt: median time to adapt to one task. Episodes, "
        "train: training, mean over seeds. MB: peak memory. Params: all that meta-training learns."
    )
    if any(row.multiply_adds_per_query for row in summary.rows):
        lines.append(
            "Mops/query: millions of multiply-adds that a query costs once its task is adapted to, where rows differ."
        )
    if any(row.calibration_error is not None for row in summary.rows):
        lines.append("ECE: expected calibration error of the test queries, 15 bins.")
    sources = dict.fromkeys(row.published.source for row in summary.rows if row.published is not None)
    if sources:
        lines.append(f"Published, by others with other code, backbones and splits: {'; '.join(sources)}.")
    return lines


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Print the table, in several parts where the console is too narrow for one."""
    console = console or Console()

    def put(table: Table) -> None:
        table.width = _width(table, console)  # a console too narrow for it wraps its lines rather than cuts them off
        console.print(table, crop=False)
        console.print()

    for line in describe(summary):
        console.print(for_screen(line, console))
    console.print()
    method, *columns = _columns(summary)
    part = [method]
    for _, group in itertools.groupby(columns, key=lambda column: column.group):
        wider = [*part, *group]
        if len(part) > 1 and _width(_rich_table(summary, wider, console), console) > console.width:
            put(_rich_table(summary, part, console))
            wider = [method, *wider[len(part) :]]
        part = wider
    put(_rich_table(summary, part, console))
    for line in notes(summary):
        console.print(for_screen(line, console), style="dim")


def to_markdown(summary: Summary) -> str:
    """The table with its description and notes in Markdown."""
    remarks = "\n".join(f"- {for_markdown(note)}" for note in notes(summary))
    described = "  \n".join(map(for_markdown, describe(summary)))
    return "\n\n".join([described, _tabulated(summary, "pipe", for_markdown), remarks]) + "\n"


def to_latex(summary: Summary) -> str:
    """The table as a ``tabular`` for the booktabs package, with description and notes as comments."""
    comments = "".join(f"% {one_line(line)}\n" for line in [*describe(summary), *notes(summary)])
    return f"{comments}{for_latex(_tabulated(summary, 'latex_booktabs', one_line))}\n"


def to_csv(summary: Summary) -> str:
    """Every number unrounded, shares and their differences in percent, empty where there is none."""
    text = io.StringIO()
    rows = [_numbers(summary, row) for row in summary.rows]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([map(for_csv, row) for row in [rows[0], *(row.values() for row in rows)]])
    return text.getvalue()


def _columns(summary: Summary) -> list[_Column]:
    scale, metric = _Scale.of(summary), summary.metric
    columns = [
        _Column("method", lambda row: row.label),
        _Column("norm.", lambda row: row.normalization),
        _Column(metric.name + " %" * metric.percent, lambda row: scale.interval(row.score)),
        _Column("seeds", lambda row: scale.number(row.spread.std)),
    ]
    if any(row.difference is not None for row in summary.rows):
        columns += [
            _Column("difference", lambda row: scale.signed(row.difference)),
            _Column("p", lambda row: _p_value(row.p_corrected)),
        ]
    if any(row.seed_difference is not None for row in summary.rows):
        columns.append(_Column("over seeds", lambda row: scale.signed(row.seed_difference), group=1))
    if any(row.published is not None for row in summary.rows):
        columns.append(_Column("published %", _published, group=1))
    if len({row.multiply_adds_per_query for row in summary.rows}) > 1:
        columns.append(_Column("Mops/query", lambda row: _millions(row.multiply_adds_per_query), group=1))
    if any(row.calibration_error is not None for row in summary.rows):
        columns.append(_Column("ECE %", lambda row: _percent(row.calibration_error), group=2))
    return [
        *columns,
        _Column("loss", lambda row: _number(row.loss, ".3f"), group=2),
        _Column("adapt ms", lambda row: _number(row.adaptation_ms, ".1f"), group=2),
        _Column("episodes", lambda row: _number(row.training_episodes, ",.0f"), group=2),
        _Column("train s", lambda row: _number(row.training_seconds, ",.0f"), group=2),
        _Column("MB", lambda row: _number(row.peak_memory_mb, ",.0f"), group=2),
        _Column("params", lambda row: _number(row.parameters.get("meta"), ",d"), group=2),
    ]


def _tabulated(summary: Summary, form: str, escaped: Callable[[str], str]) -> str:
    columns = _columns(summary)
    titles = [escaped(column.title) for column in columns]
    cells = [[escaped(column.cell(row)) for column in columns] for row in summary.rows]
    aligned = ("left", "left", *["right"] * (len(columns) - 2))
    return str(tabulate(cells, titles, tablefmt=form, colalign=aligned, disable_numparse=True))


def _rich_table(summary: Summary, columns: Sequence[_Column], console: Console) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        left = position == 0 or column.title == "norm."
        table.add_column(for_screen(column.title, console), justify="left" if left else "right", no_wrap=True)
    for row in summary.rows:
        table.add_row(*(for_screen(column.cell(row), console) for column in columns))
    return table


def _width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update(width=1_000_000)).maximum


def _numbers(summary: Summary, row: Row) -> dict[str, object]:
    """A row of the CSV file."""

    def scaled(value: float | None) -> float | None:
        return None if value is None else summary.factor * value

    def interval(name: str, value: Interval | None) -> dict[str, float | None]:
        return {
            name: scaled(None if value is None else value.mean),
            f"{name}_half_width": scaled(None if value is None else value.half_width),
        }

    published = row.published
    what = {
        "method": row.method,
        "label": row.label,
        "normalization": row.normalization,
        "seeds": " ".join(map(str, row.seeds)),
        "test_episodes": summary.experiment.test_episodes,
    }
    others = {
        "seed_std": scaled(row.spread.std),
        "seed_half_width": scaled(row.spread.half_width),
        "baseline": summary.baseline,
        **interval("difference", row.difference),
        "p": None if row.difference is None else row.difference.p_value,
        "p_holm": row.p_corrected,
        **interval("seed_difference", row.seed_difference),
        "loss": row.loss,
        "adaptation_ms": row.adaptation_ms,
        "training_episodes": row.training_episodes,
        "training_seconds": row.training_seconds,
        "peak_memory_mb": row.peak_memory_mb,
        "multiply_adds_per_query": row.multiply_adds_per_query,
        "calibration_error": row.calibration_error,
        **{f"{kind}_parameters": row.parameters.get(kind) for kind in ("meta", "backbone", "generated")},
        "published": published and published.accuracy,
        "published_half_width": published and published.half_width,
        "published_source": published and published.source,
    }
    name = summary.metric.name.replace(" ", "_")
    name += "_of_the_metric" * (name in what or name in others)  # a metric may be called "loss"
    return {**what, **interval(name, row.score), **others}


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
    return _number(None if count is None else count / 1e6, ".3g")


def _percent(share: float | None) -> str:
    return _number(None if share is None else 100 * share, ".1f")


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)
