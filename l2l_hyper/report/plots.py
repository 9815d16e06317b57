"""Figures of a summary: scores with their intervals, and learning curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .escape import for_plot
from .summary import SEEDS_FOR_INTERVAL, Summary

__all__ = ["accuracy_figure", "learning_curves_figure", "render"]

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow is left out, too faint on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", ":")  # for methods beyond as many as there are colours

Array = NDArray[np.float64]


def accuracy_figure(summary: Summary) -> Figure:
    """Test score of every method: a dot with its 95 % interval, as in the table, and a small dot for each seed."""
    colors, rows = _colors(summary), summary.rows[::-1]
    figure = Figure(figsize=(7, 1.5 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for height, row in enumerate(rows):
        color, mean, half = colors[row.method], summary.factor * row.score.mean, summary.factor * row.score.half_width
        seeds = [summary.factor * record.scores.mean() for record in row.records]
        axes.plot(seeds, [height - 0.22] * len(seeds), ".", color=color, markersize=5, alpha=0.6)
        axes.errorbar(mean, height, xerr=half, fmt="o", color=color, markersize=8, capsize=4, linewidth=2)
    axes.set_yticks(range(len(rows)), [for_plot(row.label) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="x", alpha=0.3)
    axes.margins(x=0.1)
    axes.set_xlabel(f"test {_score(summary)}\nbars: 95 % interval over {_over(summary)}\nsmall dots: training seeds")
    axes.set_title(_task(summary))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def learning_curves_figure(summary: Summary) -> Figure:
    """Validation score against training episodes and against seconds, with the range of the seeds shaded."""
    colors = _colors(summary)
    dashes = {method: _DASHES[i // len(_COLORS) % len(_DASHES)] for i, method in enumerate(colors)}
    figure = Figure(figsize=(12, max(4.2, 1.5 + 0.3 * len(summary.rows))), layout="constrained")
    by_episodes, by_seconds = figure.subplots(1, 2, sharey=True)
    for row in summary.rows:
        curves = [record.result.validation for record in row.records if record.result.validation]
        scores = [np.array([summary.factor * point.score for point in curve]) for curve in curves]
        batch = summary.experiment.meta_batch
        episodes = [np.array([float(batch * point.iteration) for point in curve]) for curve in curves]
        seconds = [np.array([point.seconds for point in curve]) for curve in curves]
        for axes, at in ((by_episodes, episodes), (by_seconds, seconds)):
            if curves:
                style = {"color": colors[row.method], "linestyle": dashes[row.method], "label": for_plot(row.label)}
                _draw_band(axes, list(zip(at, scores, strict=True)), style)
    by_episodes.set_xlabel("training episodes")
    by_seconds.set_xlabel("training seconds")
    by_episodes.set_ylabel(f"validation {_score(summary)}")
    for axes in (by_episodes, by_seconds):
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
    if by_seconds.lines:
        by_seconds.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"{_task(summary)}; mean and range of the seeds")
    return figure


def render(figure: Figure, form: str) -> bytes:
    """The figure as the bytes of a "png" or "pdf" file, the same for the same figure."""
    content = io.BytesIO()
    figure.savefig(content, format=form, dpi=150, metadata={"CreationDate": None} if form == "pdf" else None)
    return content.getvalue()


def _score(summary: Summary) -> str:
    return for_plot(summary.metric.name) + (" in %" if summary.metric.percent else "")


def _over(summary: Summary) -> str:
    several = [row.score_over_seeds for row in summary.rows]
    if all(several):
        return "seeds and episodes"
    return f"episodes (and seeds, from {SEEDS_FOR_INTERVAL} on)" if any(several) else "episodes"


def _task(summary: Summary) -> str:
    experiment = summary.experiment
    task = f"{for_plot(experiment.tasksets)}, {experiment.ways}-way {experiment.shots}-shot"
    return task if summary.chance is None else f"{task}, chance {summary.chance:.3g} %"


def _colors(summary: Summary) -> dict[str, str]:
    return {method: _COLORS[i % len(_COLORS)] for i, method in enumerate(sorted(row.method for row in summary.rows))}


def _draw_band(axes: Axes, lines: Sequence[tuple[Array, Array]], style: dict[str, Any]) -> None:
    """Mean and range of several curves, where all of them have been measured."""
    start, end = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    grid = np.unique(np.concatenate([x for x, _ in lines]))
    grid = grid[(grid >= start) & (grid <= end)]
    heights = np.stack([np.interp(grid, x, y) for x, y in lines])
    marker = "o" if len(grid) < 2 else None  # a line through a single point is invisible
    axes.plot(grid, heights.mean(axis=0), linewidth=2, marker=marker, **style)
    if len(lines) > 1:
        low, high = heights.min(axis=0), heights.max(axis=0)
        axes.fill_between(grid, low, high, color=style["color"], alpha=0.2, linewidth=0)
