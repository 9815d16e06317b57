"""Figures of a summary: scores with their intervals, and learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .escape import for_plot
from .style import LABEL_WIDTH, WIDTH, draw_legend, looks, score_name, styled, task, with_legend
from .summary import SEEDS_FOR_INTERVAL, Summary

__all__ = ["accuracy_figure", "learning_curves_figure"]

Array = NDArray[np.float64]


@styled
def accuracy_figure(summary: Summary) -> Figure:
    """Test score of every method: mean and interval of the table, every seed, and the spread of the episodes."""
    rows, look = summary.rows[::-1], looks(row.method for row in summary.rows)
    labels = [for_plot(row.label, width=LABEL_WIDTH) for row in rows]
    pitch = 0.32 if any("\n" in label for label in labels) else 0.24  # inches between two rows
    figure = Figure(figsize=(WIDTH, 1.5 + pitch * len(rows)))
    means, episodes = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for height, row in enumerate(rows):
        color, marker = look[row.method]["color"], look[row.method]["marker"]
        seeds = [summary.factor * record.scores.mean() for record in row.records]
        means.plot(seeds, [height - 0.3] * len(seeds), "o", color=color, markersize=3, markerfacecolor="none")
        mean, half_width = summary.factor * row.score.mean, summary.factor * row.score.half_width
        means.errorbar(mean, height, xerr=half_width, marker=marker, color=color, markersize=5, capsize=2.5)
        of_episodes = summary.factor * np.mean([record.scores for record in row.records], axis=0)
        low, lower, median, upper, high = np.percentile(of_episodes, [5, 25, 50, 75, 95])
        episodes.plot([low, high], [height, height], color=color, linewidth=1)
        episodes.plot([lower, upper], [height, height], color=color, linewidth=5, solid_capstyle="butt")
        episodes.plot(median, height, "|", color="white", markersize=5)
    means.set_yticks(range(len(rows)), labels)
    means.set_ylim(-0.7, len(rows) - 0.4)
    means.set_xlabel(f"mean test {score_name(summary)}")
    episodes.set_xlabel("of single episodes")
    episodes.tick_params(left=False)
    for axes in (means, episodes):
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.1)
        axes.locator_params(axis="x", nbins=5)
    figure.suptitle(task(summary))
    plain: dict[str, Any] = {"color": "black"}
    handles = [
        Line2D([], [], marker="o", label=f"mean, 95 % interval over {_over(summary)}", **plain),
        Line2D([], [], marker="o", markersize=3, markerfacecolor="none", linestyle="", label="training seed", **plain),
        Line2D(
            [], [], linewidth=5, solid_capstyle="butt", label="middle half of the test episodes (line: 90 %)", **plain
        ),
    ]
    figure.legend(handles=handles, loc="outside lower left", fontsize=7)
    return figure


@styled
def learning_curves_figure(summary: Summary) -> Figure:
    """Validation score against training episodes and against seconds: the mean of the seeds, and every seed thinner."""
    look = looks(row.method for row in summary.rows)
    labels = [for_plot(row.label, width=LABEL_WIDTH) for row in summary.rows]
    figure, (by_episodes, by_seconds) = with_legend(labels, panels=2)
    for row, label in zip(summary.rows, labels, strict=True):
        curves = [record.result.validation for record in row.records if record.result.validation]
        scores = [np.array([summary.factor * point.score for point in curve]) for curve in curves]
        batch = summary.experiment.meta_batch
        episodes = [np.array([float(batch * point.iteration) for point in curve]) for curve in curves]
        seconds = [np.array([point.seconds for point in curve]) for curve in curves]
        for axes, at in ((by_episodes, episodes), (by_seconds, seconds)):
            if curves:
                _draw_seeds(axes, list(zip(at, scores, strict=True)), {**look[row.method], "label": label})
    by_episodes.set_xlabel("training episodes")
    by_seconds.set_xlabel("training seconds")
    by_episodes.set_ylabel(f"validation {score_name(summary)}")
    for axes in (by_episodes, by_seconds):
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))  # more large numbers would touch
        axes.xaxis.set_major_formatter("{x:,.6g}")
    figure.suptitle(f"{task(summary)}; mean of the seeds, and every seed thinner")
    draw_legend(figure)
    return figure


def _over(summary: Summary) -> str:
    several = [row.score_over_seeds for row in summary.rows]
    if all(several):
        return "seeds and episodes"
    return f"episodes (and seeds, from {SEEDS_FOR_INTERVAL} on)" if any(several) else "episodes"


def _draw_seeds(axes: Axes, curves: Sequence[tuple[Array, Array]], look: dict[str, Any]) -> None:
    """Every curve thin, and their mean where all of them have been measured."""
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(grid >= start) & (grid <= end)]
    heights = np.stack([np.interp(grid, x, y) for x, y in curves])
    axes.plot(grid, heights.mean(axis=0), markersize=3.5, markevery=max(1, len(grid) // 6), **look)
    if len(curves) > 1:
        for x, y in curves:
            axes.plot(x, y, color=look["color"], linestyle=look["linestyle"], linewidth=0.5, alpha=0.6)
