"""Progress of one run on the screen: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["RunProgress"]

SECONDS_BETWEEN_LINES = 30.0


class RunProgress:
    """Shows a run's training: pass it to :func:`l2l_hyper.engine.train_and_test` as ``progress``.

    Args:
        console: where to show it.
        title: what is being trained.
        train_seconds: the length of training where it is a time, ``None`` where it is a number of iterations.
    """

    def __init__(self, console: Console, title: str, *, train_seconds: float | None = None) -> None:
        self._console, self._title, self._train_seconds = console, title, train_seconds
        self._bar: Progress | None = None
        self._last_line = time.monotonic()
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(escape(title), total=None, status="")

    def __enter__(self) -> RunProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, iteration: int, total: int, seconds: float, loss: float, accuracy: float) -> None:
        """Show that ``iteration`` of ``total`` is done, ``seconds`` into training, with its loss and accuracy."""
        status = f"loss {loss:.3f}, accuracy {100 * accuracy:.1f} %"
        done, whole = (float(iteration), float(total))
        if self._train_seconds is not None:
            done, whole = min(seconds, self._train_seconds), self._train_seconds
        if self._bar is not None:
            status = status if done < whole else "testing"
            self._bar.update(self._task, completed=done, total=whole, status=status)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            share = f"{100 * done / whole:.0f} % of training"
            line = f"{self._title}: iteration {iteration}, {share}, {seconds:.0f} s, {status}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
