"""Plots of a summary and its records: accuracies with intervals, and learning curves."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .records import Record
from .summary import Summary, by_method

__all__ = ["accuracy_figure", "learning_curves_figure", "render"]

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow is left out, too faint on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

Array = NDArray[np.float64]


def accuracy_figure(summary: Summary, records: Sequence[Record]) -> Figure:
    """Test accuracy of every method: a dot with its 95 % interval over episodes, and a small dot for each seed."""
    experiment, colors, groups = summary.experiment, _colors(records), by_method(records)
    figure = Figure(figsize=(7, 1.5 + 0.5 * len(summary.rows)), layout="constrained")
    axes = figure.subplots()
    for height, row in enumerate(reversed(summary.rows)):
        color, mean, half = colors[row.method], 100 * row.accuracy.mean, 100 * row.accuracy.half_width
        seeds = [100 * record.accuracies.mean() for record in groups[row.method]]
        axes.plot(seeds, [height - 0.22] * len(seeds), ".", color=color, markersize=5, alpha=0.6)
        axes.errorbar(mean, height, xerr=half, fmt="o", color=color, markersize=8, capsize=4, linewidth=2)
    axes.set_yticks(range(len(summary.rows)), [row.label for row in reversed(summary.rows)])
    axes.set_ylim(-0.6, len(summary.rows) - 0.4)
    axes.grid(axis="x", alpha=0.3)
    axes.margins(x=0.1)
    axes.set_xlabel("test accuracy in %; bars: 95 % interval over episodes; small dots: training seeds")
    task = f"{experiment.tasksets}, {experiment.ways}-way {experiment.shots}-shot"
    axes.set_title(f"{task}, chance {100 / experiment.ways:.3g} %")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def learning_curves_figure(summary: Summary, records: Sequence[Record]) -> Figure:
    """Validation accuracy against training episodes and against seconds, with the range of the seeds shaded."""
    experiment, colors, groups = summary.experiment, _colors(records), by_method(records)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    by_episodes, by_seconds = figure.subplots(1, 2, sharey=True)
    for row in summary.rows:
        curves = [record.measured["validation"] for record in groups[row.method]]
        for axes, name, scale in ((by_episodes, "iteration", experiment.meta_batch), (by_seconds, "seconds", 1)):
            lines = [
                (
                    np.array([scale * point[name] for point in curve], dtype=np.float64),
                    np.array([100 * point["accuracy"] for point in curve], dtype=np.float64),
                )
                for curve in curves
                if curve
            ]
            if lines:
                _draw_band(axes, lines, colors[row.method], row.label)
    by_episodes.set_xlabel("training episodes")
    by_seconds.set_xlabel("training seconds")
    by_episodes.set_ylabel("validation accuracy in %")
    for axes in (by_episodes, by_seconds):
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
    if by_seconds.lines:
        by_seconds.legend(frameon=False, loc="lower right")
    figure.suptitle(
        f"{experiment.tasksets}, {experiment.ways}-way {experiment.shots}-shot, mean and range of the seeds; "
        f"chance {100 / experiment.ways:.3g} %"
    )
    return figure


def render(figure: Figure, form: str) -> bytes:
    """The figure as the bytes of a "png" or "pdf" file, the same for the same figure."""
    content = io.BytesIO()
    figure.savefig(content, format=form, dpi=150, metadata={"CreationDate": None} if form == "pdf" else None)
    return content.getvalue()


def _colors(records: Sequence[Record]) -> dict[str, str]:
    return {method: _COLORS[i % len(_COLORS)] for i, method in enumerate(by_method(records))}


def _draw_band(axes: Axes, lines: Sequence[tuple[Array, Array]], color: str, label: str) -> None:
    """Mean and range of several curves, where all of them have been measured."""
    start, end = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    grid = np.unique(np.concatenate([x for x, _ in lines]))
    grid = grid[(grid >= start) & (grid <= end)]
    heights = np.stack([np.interp(grid, x, y) for x, y in lines])
    marker = "o" if len(grid) < 2 else None  # a line through a single point is invisible
    axes.plot(grid, heights.mean(axis=0), color=color, label=label, linewidth=2, marker=marker)
    if len(lines) > 1:
        axes.fill_between(grid, heights.min(axis=0), heights.max(axis=0), color=color, alpha=0.2, linewidth=0)
