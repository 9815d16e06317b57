"""A folder of records -> its table on the screen, its table files and its plots."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..errors import InputError
from .files import write_atomically
from .plots import accuracy_figure, learning_curves_figure, render
from .records import read_records
from .summary import Summary, summarize
from .tables import print_summary, to_csv, to_latex, to_markdown

__all__ = ["DEFAULT_BASELINE", "write_report"]

DEFAULT_BASELINE = "protonet"


def write_report(folder: Path, console: Console, *, baseline: str | None = None) -> Summary:
    """Print the comparison that a folder holds, and write ``results.md``, ``.csv``, ``.tex`` and the plots into it.

    Without a ``baseline``, ProtoNet is it where it has records.

    Raises:
        InputError: when the folder has no records, damaged ones, or ones that do not belong together.
    """
    records = read_records(folder)
    if not records:
        raise InputError(
            f"expected a folder with records, got {folder} without any: try the --out of a finished `l2l-hyper compare`"
        )
    if baseline is None and any(record.run.method == DEFAULT_BASELINE for record in records):
        baseline = DEFAULT_BASELINE
    summary = summarize(records, baseline)
    write_atomically(folder / "results.md", to_markdown(summary))
    write_atomically(folder / "results.csv", to_csv(summary))
    write_atomically(folder / "results.tex", to_latex(summary))
    accuracy = accuracy_figure(summary, records)
    for form in ("png", "pdf"):
        write_atomically(folder / f"accuracy.{form}", render(accuracy, form))
    write_atomically(folder / "learning_curves.png", render(learning_curves_figure(summary, records), "png"))
    print_summary(summary, console)
    console.print(f"written to {folder}: results.md, .csv, .tex, accuracy.png, .pdf, learning_curves.png", markup=False)
    return summary
