"""Progress of one run on the screen: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..terminal import one_line
from .records import MetricInfo

if TYPE_CHECKING:
    from .training import Step

__all__ = ["RunProgress", "score_text"]

SECONDS_BETWEEN_LINES = 30.0


def score_text(metric: MetricInfo, score: float, half_width: float | None = None) -> str:
    """A score as progress shows it.

    >>> score_text(MetricInfo(), 0.9123, 0.004)
    'accuracy 91.23 ± 0.40 %'
    """
    scale, unit, digits = (100, " %", ".2f") if metric.percent else (1, "", ".4g")
    interval = "" if half_width is None else f" ± {scale * half_width:{digits}}"
    return f"{one_line(metric.name)} {scale * score:{digits}}{interval}{unit}"


class RunProgress:
    """Shows a run's training: pass it to :func:`~l2l_hyper.experiment.training.train_and_test` as ``progress``.

    Args:
        console: where to show it.
        title: what is being trained.
        train_seconds: the length of training where it is a time, ``None`` where it is a number of iterations.
    """

    def __init__(self, console: Console, title: str, *, train_seconds: float | None = None) -> None:
        self._console, self._title, self._train_seconds = console, one_line(title), train_seconds
        self._bar: Progress | None = None
        self._last_line = time.monotonic()
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}", markup=False),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(self._title, total=None, status="")

    def __enter__(self) -> RunProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):  # where the terminal is gone, that is what ends the run, and not this
                self._bar.stop()

    def __call__(self, step: Step) -> None:
        """Show an iteration that is done, with its loss and score."""
        status = f"loss {step.loss:.3f}, {score_text(step.metric, step.score)}"
        done, whole = float(step.iteration), float(step.total)
        if self._train_seconds is not None:
            done, whole = min(step.seconds, self._train_seconds), self._train_seconds
        if self._bar is not None:
            status = status if done < whole else "testing"
            self._bar.update(self._task, completed=done, total=whole, status=status)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            share = f"{100 * done / whole:.0f} % of training"
            line = f"{self._title}: iteration {step.iteration}, {share}, {step.seconds:.0f} s, {status}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
