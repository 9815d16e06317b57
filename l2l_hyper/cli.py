"""The command line `l2l-hyper`: compare, report, sweep, evaluate, predict, data, list."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, cast

import typer

from . import commands
from ._version import __version__
from .commands.common import complain, say
from .errors import InputError
from .stopping import Stopped

__all__ = ["app", "main"]

app = typer.Typer(pretty_exceptions_enable=False)
for command in (commands.compare, commands.report, commands.sweep, commands.evaluate, commands.predict, commands.data):
    app.command()(command)
app.command("list")(commands.list_names)

# click's UsageError, which typer takes from click or from its own copy of it, depending on its version
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what stops it ends as one line on stderr.

    Exit codes: 2 for bad input, 1 where the operating system or another process failed, 128 + n for signal n.
    """
    if "" not in sys.path:  # so that package.module:object finds modules of the present folder, as with python -m
        sys.path.append("")
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="l2l-hyper", standalone_mode=False)
        sys.stdout.flush()
    except InputError as error:
        code = complain(str(error))
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "l2l-hyper"
        code = complain(f"{error.format_message().rstrip('. ')}: try `{command} --help`")
    except OSError as error:
        where = error.filename or "the output"
        code = complain(f"cannot use {where} ({error.strerror}): make room, or try another place", code=1)
    except typer.Abort:
        code = 130
    except Stopped as stopped:
        say(f"\nl2l-hyper: {stopped}")
        code = stopped.code
    sys.exit(code)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"l2l-hyper {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")]


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: Version = False) -> None:
    """Fair comparisons of hypernetwork adaptation with MAML, ProtoNets and other methods, on the same episodes."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
