"""A folder of records -> its table files and its figures, and the table on the screen."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..errors import InputError
from ..experiment.records import read_records
from ..files import write_atomically
from .plots import accuracy_figure, learning_curves_figure, render
from .summary import Summary, summarize
from .tables import print_summary, to_csv, to_latex, to_markdown

__all__ = ["write_report"]


def write_report(folder: Path, console: Console | None = None, *, baseline: str | None = None) -> Summary:
    """Write ``results.md``, ``.csv``, ``.tex`` and the figures of a folder of records into it.

    Args:
        folder: holds ``records/``, as ``l2l-hyper compare --out`` leaves it.
        console: where the table is printed as well; nothing is printed if left out.
        baseline: see :func:`~l2l_hyper.report.summarize`.

    Raises:
        InputError: when the folder has no records, damaged ones, or ones that do not belong together.
    """
    records = read_records(folder)
    if not records:
        raise InputError(
            f"expected a folder with records, got {folder} without any: try the --out of a finished `l2l-hyper compare`"
        )
    summary = summarize(records, baseline)
    write_atomically(folder / "results.md", to_markdown(summary))
    write_atomically(folder / "results.csv", to_csv(summary))
    write_atomically(folder / "results.tex", to_latex(summary))
    accuracy = accuracy_figure(summary)
    for form in ("png", "pdf"):
        write_atomically(folder / f"accuracy.{form}", render(accuracy, form))
    write_atomically(folder / "learning_curves.png", render(learning_curves_figure(summary), "png"))
    if console is not None:
        print_summary(summary, console)
        written = "results.md, .csv, .tex, accuracy.png, .pdf, learning_curves.png"
        console.print(f"written to {folder}: {written}", markup=False)
    return summary
