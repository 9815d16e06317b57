"""A summary as a table: on the screen, in Markdown and CSV."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from tabulate import tabulate

from ..statistics import Interval
from .columns import Column, columns, describe, notes
from .controls import CONTROLS_NOTE, control_table
from .escape import for_csv, for_markdown, for_screen
from .summary import Row, Summary

__all__ = ["print_summary", "to_csv", "to_markdown"]


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
    method, *others = columns(summary)
    part = [method]
    for _, group in itertools.groupby(others, key=lambda column: column.group):
        wider = [*part, *group]
        if len(part) > 1 and _width(_rich_table(summary, wider, console), console) > console.width:
            put(_rich_table(summary, part, console))
            wider = [method, *wider[len(part) :]]
        part = wider
    put(_rich_table(summary, part, console))
    for line in notes(summary):
        console.print(for_screen(line, console), style="dim")


def to_markdown(summary: Summary) -> str:
    """The table with its description and notes in Markdown, and the table of controls where there are some."""
    shown = columns(summary)
    cells = [[_marked(column, row) for column in shown] for row in summary.rows]
    remarks = "\n".join(f"- {for_markdown(note)}" for note in notes(summary))
    described = "  \n".join(map(for_markdown, describe(summary)))
    parts = [
        described,
        _piped([column.title for column in shown], cells, sum(column.is_text for column in shown)),
        remarks,
    ]
    controls = control_table(summary)
    if controls:
        head, *rows = controls
        parts += [_piped(head, [list(map(for_markdown, row)) for row in rows], 2), for_markdown(CONTROLS_NOTE)]
    return "\n\n".join(parts) + "\n"


def to_csv(summary: Summary) -> str:
    """Every number unrounded, shares and their differences in percent, empty where there is none.

    Columns that are empty in every row are left out; those that are the same in every row stay, because nothing else in
    the file says so.
    """
    text = io.StringIO()
    rows = [_numbers(summary, row) for row in summary.rows]
    writer = csv.writer(text, lineterminator="\n")
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    writer.writerow(map(for_csv, names))
    writer.writerows([for_csv(row[name]) for name in names] for row in rows)
    return text.getvalue()


def _marked(column: Column, row: Row) -> str:
    text = for_markdown(column.cell(row))
    return f"**{text}**" if column.is_score and row.best else text


def _piped(titles: Sequence[str], cells: Sequence[Sequence[str]], texts: int) -> str:
    """A table in Markdown whose first columns are text."""
    aligned = [*["left"] * texts, *["right"] * (len(titles) - texts)]
    heads = [for_markdown(title) for title in titles]
    return str(tabulate(cells, heads, tablefmt="pipe", colalign=aligned, disable_numparse=True))


def _rich_table(summary: Summary, shown: Sequence[Column], console: Console) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in shown:
        table.add_column(for_screen(column.title, console), justify="left" if column.is_text else "right", no_wrap=True)
    for row in summary.rows:
        cells = [(for_screen(column.cell(row), console), column.is_score and row.best) for column in shown]
        for cell, is_bold in cells:
            cell.stylize("bold" if is_bold else "")
        table.add_row(*(cell for cell, _ in cells))
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
