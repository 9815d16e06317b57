"""What stops a command: Ctrl-C, SIGTERM as a scheduler sends it, SIGHUP as a closing terminal does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["Stopped", "catch_signals", "held", "raised"]

# Only what starts fast is imported here: until the signals are caught, Ctrl-C is a traceback.
_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
_SHOW_CURSOR = b"\x1b[?25h"


class Stopped(BaseException):
    """A signal told the command to stop.

    No ``Exception``, as ``KeyboardInterrupt`` is none: what handles errors must not go on.

    Attributes:
        number: of the signal.
        saved: what was kept for the next time, for the message.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.saved = ""

    def __str__(self) -> str:
        name = _SIGNALS[signal.Signals(self.number)]
        return f"stopped by {name}{self.saved}; the same command continues from the last checkpoint, if there is one"

    @property
    def code(self) -> int:
        """The exit code by which shells tell that a signal ended a command."""
        return 128 + self.number


class _Signals:
    """What happens at a signal.

    Attributes:
        raises: whether it is raised; else it ends the process at once.
        holds: whether it waits to be raised.
        waiting: the one that waits.
        told: whether there was one.
    """

    def __init__(self) -> None:
        self.raises = self.holds = self.told = False
        self.waiting: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.told or not self.raises:
            self._end(number)
        self.told = True
        if not self.holds:
            raise Stopped(number)
        self.waiting = number

    def _end(self, number: int) -> None:
        """End the process from wherever it is: an exception within an import may come out as any other."""
        stopped = Stopped(number)
        with suppress(OSError):  # the terminal may be gone
            os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + f"\nl2l-hyper: {stopped}\n".encode())
        os._exit(stopped.code)


_signals = _Signals()


def catch_signals() -> None:
    """From here on a signal ends the process with one line, and within :func:`raised` as :class:`Stopped`.

    A second one always ends it at once.  Signals that are ignored, as nohup has it, stay so.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _signals)


@contextmanager
def raised() -> Iterator[None]:
    """Within the block a signal raises :class:`Stopped`, so that files and the terminal are left in order."""
    _signals.raises = True
    try:
        yield
    finally:
        _signals.raises = False


@contextmanager
def held() -> Iterator[None]:
    """Within the block the first signal waits: :class:`Stopped` is raised when the block has ended."""
    _signals.holds = True
    try:
        yield
    finally:
        _signals.holds = False
    if _signals.waiting is not None:
        number, _signals.waiting = _signals.waiting, None
        raise Stopped(number)
