"""A folder of records -> its table files, figures and page, and the table on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..errors import InputError
from ..experiment.records import Record, read_records
from ..files import write_atomically
from ..locks import remove_leftovers
from .curves import cost_figure, shots_figure
from .latex import to_latex
from .page import Picture, to_html
from .plots import accuracy_figure, learning_curves_figure
from .style import render
from .summary import Summary, summarize
from .tables import print_summary, to_csv, to_markdown

__all__ = ["write_report"]


def write_report(
    folder: Path,
    console: Console | None = None,
    *,
    baseline: str | None = None,
    shots: int | None = None,
    networks: Sequence[Path] = (),
) -> Summary:
    """Write ``results.html``, ``.md``, ``.csv``, ``.tex`` and the figures of a folder of records into it.

    The page holds the tables of all numbers of shots that were tested.  Files for another number than the experiment's
    are called ``results-5-shot.md`` and so on.

    Args:
        folder: holds ``records/``, as ``l2l-hyper compare --out`` leaves it.
        console: where the table is printed as well; nothing is printed if left out.
        baseline: see :func:`~l2l_hyper.report.summarize`.
        shots: support samples per class of the table, one of the experiment's ``test_shots``; ``shots`` if left out.
        networks: folders of the same comparison with other networks, for the figure of scores against multiply-adds.

    Raises:
        InputError: when a folder has no records, damaged ones, ones that do not belong together, or none of these
            shots.
    """
    records = _read(folder)
    own = records[0].run.experiment.shots
    shots = own if shots is None else shots
    summary = _summary(records, shots, baseline)
    of_shots = "" if shots == own else f"-{shots}-shot"
    figures = {
        f"accuracy{of_shots}": (
            accuracy_figure(summary),
            "Test scores: the means with their intervals and training seeds, and how single episodes lie apart.",
        )
    }
    files: dict[str, str | bytes] = {
        f"results{of_shots}.md": to_markdown(summary),
        f"results{of_shots}.csv": to_csv(summary),
        f"results{of_shots}.tex": to_latex(summary),
    }
    others = [_summary(_read(network), shots, None) for network in networks]
    costs = [row.multiply_adds_per_query for row in summary.rows if row.multiply_adds_per_query]
    if others or (costs and max(costs) > 1.01 * min(costs)):  # else there is no axis to draw
        cost = cost_figure([summary, *others])
        figures[f"cost{of_shots}"] = (
            cost,
            "Test scores against what a query costs once its task is adapted to; a method is a curve over networks.",
        )
    if shots == own:
        tested = {other.shots for record in records for other in record.result.other_shots} - {own}
        summaries = [summary, *(_summary(records, other, baseline) for other in sorted(tested))]
        if tested:
            figures["shots"] = (shots_figure(summaries), f"Test scores against {summary.support_samples}.")
        if any(len(record.result.validation) > 1 for record in records):  # one look is no curve
            figures["learning_curves"] = (
                learning_curves_figure(summary),
                "Validation scores during training: the mean of the seeds, and every seed thinner.",
            )
        pictures = [Picture(render(figure, "svg"), caption) for figure, caption in figures.values()]
        files["results.html"] = to_html(summaries, pictures)
    for name, (figure, _) in figures.items():
        files |= {f"{name}.{form}": render(figure, form) for form in ("pdf", "png")}
    remove_leftovers(folder)
    for name, content in files.items():
        write_atomically(folder / name, content)
    if console is not None:
        print_summary(summary, console)
        console.print(f"written to {folder}: {', '.join(files)}", markup=False)
    return summary


def _read(folder: Path) -> list[Record]:
    records = read_records(folder)
    if not records:
        raise InputError(
            f"expected a folder with records, got {folder} without any: try the --out of a finished `l2l-hyper compare`"
        )
    return records


def _summary(records: Sequence[Record], shots: int, baseline: str | None) -> Summary:
    return summarize([record.at(shots) for record in records], baseline)
