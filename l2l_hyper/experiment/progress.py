"""Progress of one run: a bar on a terminal, a line now and then elsewhere, and the time that is left."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..terminal import one_line
from .result import MetricInfo

if TYPE_CHECKING:
    from .training import Step

__all__ = ["Reporter", "RunProgress", "duration", "score_text"]

SECONDS_BETWEEN_LINES = 30.0
_SECONDS_OF_FIRST_ITERATIONS = 5.0  # by which the time of the whole is estimated
_SHORT = 60.0  # seconds, below which no estimate is shown


def score_text(metric: MetricInfo, score: float, half_width: float | None = None) -> str:
    """A score as progress shows it.

    >>> score_text(MetricInfo(), 0.9123, 0.004)
    'accuracy 91.23 ± 0.40 %'
    """
    scale, unit, digits = (100, " %", ".2f") if metric.percent else (1, "", ".4g")
    interval = "" if half_width is None else f" ± {scale * half_width:{digits}}"
    return f"{one_line(metric.name)} {scale * score:{digits}}{interval}{unit}"


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(8), duration(200), duration(20_000)
    ('8 s', '3 min', '5 h 33 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Reporter:
    """Lines on how far a run is, which :meth:`__call__` gives every 30 seconds and at each look at validation episodes.

    Args:
        title: what is being trained.
        train_seconds: the length of training where it is a time, ``None`` where it is a number of iterations.
    """

    def __init__(self, title: str, *, train_seconds: float | None = None) -> None:
        self.title, self._train_seconds = one_line(title), train_seconds
        self._begin = self._last = time.monotonic()
        self._share_at_begin: float | None = None

    def __call__(self, step: Step) -> str | None:
        """The line of an iteration that is done, where it is time for one."""
        left, now = self.seconds_left(step), time.monotonic()
        if step.validation is None and now - self._last < SECONDS_BETWEEN_LINES:
            return None
        self._last = now
        done = f"{100 * self.share(step):.0f} % of training, {step.seconds:.0f} s"
        remaining = "" if left is None else f", about {duration(left)} left"
        return f"{self.title}: iteration {step.iteration}, {done}{remaining}, {status(step)}"

    def share(self, step: Step) -> float:
        """How much of the training is done, from 0 to 1."""
        done, whole = step.iteration, step.total
        return done / whole if self._train_seconds is None else min(1.0, step.seconds / self._train_seconds)

    def seconds_left(self, step: Step) -> float | None:
        """Seconds to the end of training, by the time since the first iteration of this process."""
        share = self.share(step)
        if self._share_at_begin is None:
            self._begin, self._share_at_begin = time.monotonic(), share
        done = share - self._share_at_begin
        return self.elapsed * (1 - share) / done if done > 0 and share < 1 else None

    @property
    def elapsed(self) -> float:
        """Seconds since the first iteration of this process."""
        return time.monotonic() - self._begin


def status(step: Step) -> str:
    """Loss and score of an iteration, or of the validation episodes after it."""
    if step.validation is None:
        return f"loss {step.loss:.3f}, {score_text(step.metric, step.score)}"
    return f"validation {score_text(step.metric, step.validation.score, step.validation.half_width)}"


class RunProgress:
    """Shows a run's training: pass it to :func:`~l2l_hyper.experiment.training.train_and_test` as ``progress``.

    Where training takes more than a minute, its first iterations tell how long it and the runs after it will take.

    Args:
        console: where to show it.
        title: what is being trained.
        train_seconds: the length of training where it is a time, ``None`` where it is a number of iterations.
        runs: how many runs are to be done, this one among them.
    """

    def __init__(self, console: Console, title: str, *, train_seconds: float | None = None, runs: int = 1) -> None:
        self._console, self._runs = console, runs
        self._report = Reporter(title, train_seconds=train_seconds)
        self._estimated = False
        self._bar: Progress | None = None
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
            self._task = self._bar.add_task(self._report.title, total=None, status="")

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
        self._estimate(step)
        if self._bar is not None:
            share = self._report.share(step)
            self._bar.update(self._task, completed=share, total=1.0, status=status(step) if share < 1 else "testing")
        elif step.validation is None and (line := self._report(step)) is not None:
            self._say(line)

    def _estimate(self, step: Step) -> None:
        left, elapsed = self._report.seconds_left(step), self._report.elapsed
        if self._estimated or left is None or elapsed < _SECONDS_OF_FIRST_ITERATIONS:
            return
        self._estimated = True
        whole = elapsed + left
        if self._runs * whole > _SHORT:
            more = f"; {self._runs} runs, if all take as long: {duration(self._runs * whole)}" * (self._runs > 1)
            self._say(f"{self._report.title}: about {duration(whole)} of training{more}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
