"""A summary as a table: on the screen, in Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tabulate import tabulate

from .statistics import Interval, PairedDifference
from .summary import Row, Summary

__all__ = ["describe", "notes", "print_summary", "to_csv", "to_latex", "to_markdown"]

NOTHING = "–"


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[Row], str]
    group: int = 0  # columns of a group stay in one table where the screen is too narrow for all


def describe(summary: Summary) -> list[str]:
    """What was compared, on which episodes, with which code and where, a line each."""
    experiment = summary.experiment
    training = f"trained for {experiment.iterations:,} iterations of {experiment.meta_batch} episodes"
    if experiment.train_seconds is not None:
        training = f"trained for {experiment.train_seconds:g} s in batches of {experiment.meta_batch} episodes"
    if experiment.train_ways not in (None, experiment.ways):
        training += f", {experiment.train_ways}-way"
    if experiment.train_queries not in (None, experiment.queries):
        training += f", {experiment.train_queries} queries a class"
    seeds = sorted({seed for row in summary.rows for seed in row.seeds})
    return [
        f"{experiment.tasksets}, {experiment.ways}-way {experiment.shots}-shot, {experiment.queries} queries a class; "
        f"{experiment.test_episodes:,} test episodes; chance {100 / experiment.ways:.3g} %",
        f"seeds {', '.join(map(str, seeds))}; backbone {experiment.backbone}, {experiment.hidden} channels; {training}"
        + ("" if experiment.precision == "float32" else f", {experiment.precision}"),
        f"episodes {summary.manifest_hash[:12]}; commit {', '.join(summary.commits)}; {'; '.join(summary.machines)}",
    ]


def notes(summary: Summary) -> list[str]:
    """What the columns mean, a sentence each."""
    lines = [
        f"Accuracy: mean ± 95 % interval (Student t) over the {summary.experiment.test_episodes:,} test episodes, each "
        "averaged over seeds.",
        "Seeds: standard deviation of the seeds' mean accuracies, in points.",
    ]
    if summary.baseline is not None:
        compared = len(summary.rows) - 1
        lines += [
            f"Difference: points above {_baseline_label(summary)} on the same episodes ± 95 % interval; p: two-sided "
            f"paired t test, Holm-corrected for {compared} comparison{'s' * (compared != 1)}.",
            "Over seeds: the mean difference of runs with the same seed ± 95 % interval over seeds.",
        ]
    lines.append(
        "Norm.: the statistics that normalization layers use at test. Adapt: median time to adapt to one task. "
        "Episodes, train: training, mean over seeds. MB: peak memory. Params: all that meta-training learns."
    )
    sources = dict.fromkeys(row.published.source for row in summary.rows if row.published is not None)
    if sources:
        lines.append(f"Published, by others with other code, backbones and splits: {'; '.join(sources)}.")
    return lines


def print_summary(summary: Summary, console: Console) -> None:
    """Print the table, in several parts where the console is too narrow for one."""
    for line in describe(summary):
        console.print(line, markup=False, highlight=False)
    console.print()
    method, *columns = _columns(summary)
    part = [method]
    for _, group in itertools.groupby(columns, key=lambda column: column.group):
        wider = [*part, *group]
        if len(part) > 1 and _width(_rich_table(summary, wider), console) > console.width:
            console.print(_rich_table(summary, part))
            console.print()
            wider = [method, *wider[len(part) :]]
        part = wider
    console.print(_rich_table(summary, part))
    console.print()
    for line in notes(summary):
        console.print(line, style="dim", markup=False, highlight=False)


def to_markdown(summary: Summary) -> str:
    """The table with its description and notes in Markdown."""
    columns = _columns(summary)
    titles = [column.title for column in columns]
    aligned = ("left", "left", *["right"] * (len(columns) - 2))
    table = tabulate(_cells(summary, columns), titles, tablefmt="pipe", colalign=aligned, disable_numparse=True)
    remarks = "\n".join(f"- {note}" for note in notes(summary))
    return "\n\n".join(["  \n".join(describe(summary)), table, remarks]) + "\n"


def to_latex(summary: Summary) -> str:
    """The table as a ``tabular`` for the booktabs package, with description and notes as comments."""
    columns = _columns(summary)
    titles = [column.title for column in columns]
    aligned = ("left", "left", *["right"] * (len(columns) - 2))
    cells = _cells(summary, columns)
    table = tabulate(cells, titles, tablefmt="latex_booktabs", colalign=aligned, disable_numparse=True)
    for character, command in {"±": r"$\pm$", "−": "$-$", "–": "--", r"\ensuremath{<}": "$<$"}.items():
        table = table.replace(character, command)
    comments = "".join(f"% {line}\n" for line in [*describe(summary), *notes(summary)])
    return f"{comments}{table}\n"


def to_csv(summary: Summary) -> str:
    """Every number unrounded, accuracies and differences in percent, empty where there is none."""
    text = io.StringIO()
    rows = [_numbers(summary, row) for row in summary.rows]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _columns(summary: Summary) -> list[_Column]:
    paired = summary.baseline is not None and len(summary.rows) > 1
    columns = [
        _Column("method", lambda row: row.label),
        _Column("norm.", lambda row: row.normalization),
        _Column("accuracy %", lambda row: _interval(row.accuracy)),
        _Column("seeds", lambda row: NOTHING if row.spread.std is None else f"{100 * row.spread.std:.2f}"),
    ]
    if paired:
        columns += [
            _Column("difference", lambda row: _signed(row.difference)),
            _Column("p", lambda row: _p_value(row.p_corrected)),
        ]
    if any(row.seed_difference is not None for row in summary.rows):
        columns.append(_Column("over seeds", lambda row: _signed(row.seed_difference)))
    if any(row.published is not None for row in summary.rows):
        columns.append(_Column("published %", _published, group=1))
    return [
        *columns,
        _Column("adapt ms", lambda row: _number(row.adaptation_ms, ".1f"), group=2),
        _Column("episodes", lambda row: _number(row.training_episodes, ",.0f"), group=2),
        _Column("train s", lambda row: _number(row.training_seconds, ",.0f"), group=2),
        _Column("MB", lambda row: _number(row.peak_memory_mb, ",.0f"), group=2),
        _Column("params", lambda row: _number(row.parameters.get("meta"), ",d"), group=2),
    ]


def _rich_table(summary: Summary, columns: Sequence[_Column]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        left = position == 0 or column.title == "norm."
        table.add_column(column.title, justify="left" if left else "right", no_wrap=True)
    for row in _cells(summary, columns):
        table.add_row(*map(escape, row))
    return table


def _width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update(width=10_000)).maximum


def _cells(summary: Summary, columns: Sequence[_Column]) -> list[list[str]]:
    return [[column.cell(row) for column in columns] for row in summary.rows]


def _numbers(summary: Summary, row: Row) -> dict[str, object]:
    """A row of the CSV file."""
    difference, over_seeds, published = row.difference, row.seed_difference, row.published
    return {
        "method": row.method,
        "label": row.label,
        "normalization": row.normalization,
        "seeds": " ".join(map(str, row.seeds)),
        "test_episodes": summary.experiment.test_episodes,
        "accuracy": 100 * row.accuracy.mean,
        "accuracy_half_width": 100 * row.accuracy.half_width,
        "seed_std": _percent(row.spread.std),
        "seed_half_width": _percent(row.spread.half_width),
        "baseline": summary.baseline,
        "difference": None if difference is None else 100 * difference.mean,
        "difference_half_width": None if difference is None else 100 * difference.half_width,
        "p": None if difference is None else difference.p_value,
        "p_holm": row.p_corrected,
        "seed_difference": None if over_seeds is None else 100 * over_seeds.mean,
        "seed_difference_half_width": None if over_seeds is None else 100 * over_seeds.half_width,
        "adaptation_ms": row.adaptation_ms,
        "training_episodes": row.training_episodes,
        "training_seconds": row.training_seconds,
        "peak_memory_mb": row.peak_memory_mb,
        **{f"{kind}_parameters": row.parameters.get(kind) for kind in ("meta", "backbone", "generated")},
        "published": None if published is None else published.accuracy,
        "published_half_width": None if published is None else published.half_width,
        "published_source": None if published is None else published.source,
    }


def _baseline_label(summary: Summary) -> str:
    return next(row.label for row in summary.rows if row.method == summary.baseline)


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _interval(value: Interval) -> str:
    return f"{100 * value.mean:.2f} ± {100 * value.half_width:.2f}"


def _signed(value: Interval | PairedDifference | None) -> str:
    if value is None:
        return NOTHING
    return f"{100 * value.mean:+.2f} ± {100 * value.half_width:.2f}".replace("-", "−")


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


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)
