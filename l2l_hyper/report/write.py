"""A folder of records -> its table files and its figures, and the table on the screen."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..errors import InputError
from ..experiment.records import read_records
from ..files import write_atomically
from ..locks import remove_leftovers
from .plots import accuracy_figure, learning_curves_figure, render
from .summary import Summary, summarize
from .tables import print_summary, to_csv, to_latex, to_markdown

__all__ = ["write_report"]


def write_report(
    folder: Path, console: Console | None = None, *, baseline: str | None = None, shots: int | None = None
) -> Summary:
    """Write ``results.md``, ``.csv``, ``.tex`` and the figures of a folder of records into it.

    Files for another number of shots than the experiment's are called ``results-5-shot.md`` and so on, and there are no
    learning curves among them: those of training are the same.

    Args:
        folder: holds ``records/``, as ``l2l-hyper compare --out`` leaves it.
        console: where the table is printed as well; nothing is printed if left out.
        baseline: see :func:`~l2l_hyper.report.summarize`.
        shots: support samples per class of the table, one of the experiment's ``test_shots``; ``shots`` if left out.

    Raises:
        InputError: when the folder has no records, damaged ones, ones that do not belong together, or none of these
            shots.
    """
    records = read_records(folder)
    if not records:
        raise InputError(
            f"expected a folder with records, got {folder} without any: try the --out of a finished `l2l-hyper compare`"
        )
    own = shots is None or shots == records[0].run.experiment.shots
    summary = summarize(records if shots is None else [record.at(shots) for record in records], baseline)
    of_shots, accuracy = "" if own else f"-{shots}-shot", accuracy_figure(summary)
    files: dict[str, str | bytes] = {
        f"results{of_shots}.md": to_markdown(summary),
        f"results{of_shots}.csv": to_csv(summary),
        f"results{of_shots}.tex": to_latex(summary),
        f"accuracy{of_shots}.png": render(accuracy, "png"),
        f"accuracy{of_shots}.pdf": render(accuracy, "pdf"),
    }
    if own:
        files["learning_curves.png"] = render(learning_curves_figure(summary), "png")
    remove_leftovers(folder)
    for name, content in files.items():
        write_atomically(folder / name, content)
    if console is not None:
        print_summary(summary, console)
        console.print(f"written to {folder}: {', '.join(files)}", markup=False)
    return summary
