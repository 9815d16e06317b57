"""Figures over several summaries: scores against support samples, and against what a query costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from ..errors import InputError
from .escape import for_plot
from .style import LABEL_WIDTH, draw_legend, looks, score_name, styled, task, with_legend
from .summary import Row, Summary

__all__ = ["cost_figure", "shots_figure"]

_MARKS = "bars: 95 % interval of the mean; circles beside them: training seeds"


@styled
def shots_figure(summaries: Sequence[Summary]) -> Figure:
    """Test score of every method against support samples per class, with one summary for each number of shots."""
    figure, axes = _curves(summaries, lambda summary, _: summary.experiment.shots)
    axes.set_xlabel(f"{summaries[0].support_samples}\n{_MARKS}")
    figure.suptitle(task(summaries[0], shots=False))
    return figure


@styled
def cost_figure(summaries: Sequence[Summary]) -> Figure:
    """Test score of every method against multiply-adds per query, with one summary for each network.

    Raises:
        InputError: when they were not tested on the same episodes, or nothing was counted.
    """
    first = summaries[0]
    for other in summaries:
        if (other.manifest_hash, other.metric) != (first.manifest_hash, first.metric):
            raise InputError(
                f"networks must be tested on the same episodes by the same metric, got {first.metric.name} on episodes "
                f"{first.manifest_hash[:12]} and {other.metric.name} on {other.manifest_hash[:12]}: leave one out"
            )
    if not any(row.multiply_adds_per_query for summary in summaries for row in summary.rows):
        raise InputError("expected records with multiply-adds per query, got none: train and test again to count them")
    figure, axes = _curves(summaries, lambda _, row: (row.multiply_adds_per_query or 0) / 1e6)
    axes.set_xlabel(f"million multiply-adds per query, once its task is adapted to\n{_MARKS}")
    settings = [asdict(summary.experiment) for summary in summaries]
    differ = [name for name in settings[0] if any(other[name] != settings[0][name] for other in settings)]
    figure.suptitle(task(first) + (f"\nnetworks differ in {', '.join(differ)}" if differ else ""))
    return figure


def _curves(summaries: Sequence[Summary], place: Callable[[Summary, Row], float]) -> tuple[Figure, Axes]:
    """One curve per method through its points of all summaries; those at the same place are drawn beside each other."""
    labels = {row.method: for_plot(row.label, width=LABEL_WIDTH) for summary in summaries for row in summary.rows}
    look, apart = looks(labels), min(6, 50 / len(labels))  # points
    figure, (axes,) = with_legend(list(labels.values()))
    axes.set_xscale("log")
    ends, factor = [], summaries[0].factor
    for position, (method, label) in enumerate(labels.items()):
        found = [(place(summary, row), row) for summary in summaries for row in summary.rows if row.method == method]
        points = sorted(((at, row) for at, row in found if at), key=lambda point: point[0])
        x = apart * (position - (len(labels) - 1) / 2)
        mean_at, seeds_at = (
            axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans) for points in (x, x + apart / 2)
        )
        at, means = [at for at, _ in points], [factor * row.score.mean for _, row in points]
        half_widths = [factor * row.score.half_width for _, row in points]
        style = look[method] | {"linewidth": 1, "elinewidth": 1, "markersize": 4, "capsize": 2}
        axes.errorbar(at, means, yerr=half_widths, transform=mean_at, label=label, **style)
        seeds = [(at, factor * record.scores.mean()) for at, row in points for record in row.records]
        color = look[method]["color"]
        axes.plot(*zip(*seeds, strict=True), "o", transform=seeds_at, color=color, markersize=2, markerfacecolor="none")
        ends += seeds + [
            (x, y + end) for x, y, half in zip(at, means, half_widths, strict=True) for end in (-half, half)
        ]
    axes.update_datalim(ends)
    axes.margins(x=0.12)
    ticks: list[float] = []
    for x in sorted({x for x, _ in ends}):
        if not ticks or x > 1.3 * ticks[-1]:
            ticks.append(x)
    if len(ticks) < 10:
        axes.set_xticks(ticks, [f"{x:.3g}" for x in ticks])
        axes.set_xticks([], minor=True)
    axes.set_ylabel(f"test {score_name(summaries[0])}")
    draw_legend(figure)
    return figure, axes
