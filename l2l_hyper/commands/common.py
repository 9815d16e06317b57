"""What the commands share: flags, the folder that they write into, the screen, and how they end."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..errors import InputError
from ..experiment.plan import SETTINGS, Plan
from ..files import expanded
from ..stopping import Stopped, raised
from ..terminal import one_line

if TYPE_CHECKING:
    from ..experiment.provenance import Provenance

__all__ = ["Out", "as_folder", "complain", "require_folders", "say", "session", "stdout", "with_settings"]


def with_settings(*names: str, defaults: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag per setting; texts stay texts, which the settings themselves read and check.

    Args:
        names: of the settings.
        defaults: whether help shows the defaults of the settings.
    """

    def add(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for name in names:
            setting = SETTINGS[name]
            shown = (defaults and setting.default) or False
            option = typer.Option(setting.flag, metavar=setting.form, help=setting.help, show_default=shown)
            kind = Annotated[list[str] | None if setting.is_table else str | None, option]  # type: ignore[valid-type]
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
        command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return add


def as_folder(text: str) -> Path:
    """The folder that a flag names."""
    if not text.strip():  # which a Path takes for the present folder
        raise typer.BadParameter("expected the name of a folder, got an empty one; '.' is the present folder")
    return Path(text)


Out = Annotated[
    Path,
    typer.Option(
        parser=as_folder, metavar="DIR", help="For records, trained weights (in checkpoints/), table and plots."
    ),
]


def stdout() -> Console:
    """Standard output; into a file or a pipe, wide enough for the whole table."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def require_folders(plan: Plan, out: Path | None, flags: dict[str, Any]) -> None:
    """Tell what :func:`open_folder` would, before torch has loaded; and a data root that is not there."""
    out = Path() if out is None else out
    try:
        there = next(path for path in (out, *out.parents) if path.exists())
    except OSError as error:
        raise InputError(f"expected a folder to write into, got {out} ({error.strerror}): try another --out") from error
    if not there.is_dir():
        raise InputError(f"expected a folder to write into, but {there} is a file: try another --out")
    if flags["data_root"] is not None and not expanded(plan.data_root).is_dir():
        raise InputError(
            f"--data-root must be an existing folder, got {plan.data_root}: try the folder that holds the data sets"
        )


@contextmanager
def session(plan: Plan, out: Path | None) -> Iterator[tuple[Provenance, Console]]:
    """Hold the folder, alone or with the other processes; what stops the block ends as one line on stderr."""
    from ..experiment.distributed import ProcessLost, is_first, process_group
    from ..experiment.folder import open_folder
    from ..experiment.provenance import collect, public_command

    try:
        with raised(), process_group(plan.device), nullcontext() if out is None else open_folder(out, plan.experiment):
            yield collect(public_command(sys.argv[1:]), plan.device), Console(stderr=True, quiet=not is_first())
    except KeyboardInterrupt:  # where the signals are not caught, as in a program that calls this one
        raise Stopped(signal.SIGINT) from None
    except ProcessLost as lost:
        raise typer.Exit(complain(f"{lost}; the same command continues from the last checkpoint", code=1)) from None


def complain(message: str, *, code: int = 2) -> int:
    """Write an error on stderr, in one line, and return the exit code."""
    say(f"l2l-hyper: error: {one_line(message)}")
    return code


def say(line: str) -> None:
    """Write a line on stderr, if that can be."""
    with suppress(OSError):  # the terminal may be gone, or the disk that stderr goes to full
        typer.echo(line, err=True)
