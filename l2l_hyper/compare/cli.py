"""The command line `l2l-hyper`: compare, report, sweep, list."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from .._allocator import keep_memory
from .._version import __version__
from ..errors import InputError

if TYPE_CHECKING:
    from .plan import Plan
    from .provenance import Provenance

# What loads torch, scipy or matplotlib is imported inside the commands: help and a mistyped flag answer at once.

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

# click's UsageError, which typer takes from click or from its own copy of it, depending on its version
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends as one line on stderr and exit code 2."""
    keep_memory()
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="l2l-hyper", standalone_mode=False)
    except InputError as error:
        code = _complain(str(error))
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "l2l-hyper"
        code = _complain(f"{error.format_message().rstrip('. ')}: try `{command} --help`")
    except typer.Abort:
        code = 130
    sys.exit(code)


def _complain(message: str) -> int:
    typer.echo(f"l2l-hyper: error: {' '.join(message.split())}", err=True)
    return 2


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"l2l-hyper {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")]


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: Version = False) -> None:
    """Fair comparisons of hypernetwork adaptation with MAML, ProtoNets and their kin, on the same episodes."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


Out = Annotated[Path, typer.Option(help="Folder for records, checkpoints, table and plots.")]
DataRoot = Annotated[str | None, typer.Option(help="Folder of the data sets.", show_default="~/data")]
Device = Annotated[str | None, typer.Option(help="Device to compute on, such as cuda.", show_default="cpu")]
MemoryLimit = Annotated[
    float | None, typer.Option(help="MiB for the graphs of the episodes trained on together.", show_default="2048")
]
Baseline = Annotated[str | None, typer.Option(help="Method to pair the others with.", show_default="protonet")]


@app.command()
def compare(
    context: typer.Context,
    out: Out,
    tasksets: Annotated[str | None, typer.Option(help="Name of the tasksets.", show_default="glyphs")] = None,
    data_root: DataRoot = None,
    ways: Annotated[int | None, typer.Option(help="Classes an episode.", show_default="5")] = None,
    shots: Annotated[int | None, typer.Option(help="Support samples a class.", show_default="1")] = None,
    queries: Annotated[int | None, typer.Option(help="Query samples a class.", show_default="15")] = None,
    train_ways: Annotated[
        int | None, typer.Option(help="Classes an episode in training.", show_default="as --ways")
    ] = None,
    train_queries: Annotated[
        int | None, typer.Option(help="Query samples a class in training.", show_default="as --queries")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods, separated by commas.", show_default="hyper-adapter,maml,protonet")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Meta-training iterations.", show_default="5000")] = None,
    train_seconds: Annotated[float | None, typer.Option(help="Train each method for this time instead.")] = None,
    meta_batch: Annotated[int | None, typer.Option(help="Episodes an iteration.", show_default="16")] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Iterations between validations and checkpoints.", show_default="500")
    ] = None,
    validation_episodes: Annotated[
        int | None, typer.Option(help="Episodes that choose the weights to test.", show_default="200")
    ] = None,
    test_episodes: Annotated[int | None, typer.Option(help="Episodes of the test.", show_default="600")] = None,
    seeds: Annotated[str | None, typer.Option(help="Training seeds, separated by commas.", show_default="0")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of classes and episodes.", show_default="0")] = None,
    backbone: Annotated[str | None, typer.Option(help="Network of images.", show_default="omniglot-cnn")] = None,
    hidden: Annotated[int | None, typer.Option(help="Channels of the backbone.", show_default="64")] = None,
    normalization: Annotated[
        str | None, typer.Option(help="support, transductive or running.", show_default="support")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, or bfloat16 for mixed precision.", show_default="float32")
    ] = None,
    device: Device = None,
    memory_limit: MemoryLimit = None,
    baseline: Baseline = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="METHOD.KEY=VALUE", help="Option of a method; may be repeated.")
    ] = None,
    preset: Annotated[Path | None, typer.Option(help="TOML file of defaults for these flags.")] = None,
) -> None:
    """Train methods, test them on the same episodes, and report."""
    from .presets import Settings, combine, read_preset

    flags = {name: value for name, value in context.params.items() if name not in ("out", "option", "preset")}
    settings = combine(Settings() if preset is None else read_preset(preset), flags, option or ())
    _require_folder(out)

    from .plan import make_plan

    plan = make_plan(settings)
    _require_data_root(plan.data_root, settings.values.get("data_root"))

    from ..engine.distributed import is_first, process_group
    from .records import open_folder, read_records
    from .report import write_report
    from .runner import carry_out

    with _interruptible(), process_group(plan.device), open_folder(out, plan.experiment):
        console = Console(stderr=True, quiet=not is_first())
        carry_out(plan, out, _provenance(plan), console)
        if not is_first():
            return
    # Another process may still be training the baseline: the table without it is better than none.
    tested = {record.run.method for record in read_records(out)}
    if plan.baseline is not None and plan.baseline not in tested:
        console.print(f"{plan.baseline} has no records in {out} yet: the table is without differences", markup=False)
    write_report(out, _screen(), baseline=plan.baseline if plan.baseline in tested else None)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --out of a comparison.")],
    baseline: Baseline = None,
) -> None:
    """Print the table of a comparison and write it as Markdown, CSV, LaTeX and plots."""
    if not (folder / "records").is_dir():
        raise InputError(f"expected a folder with records, got {folder}: try the --out of `l2l-hyper compare`")
    from .report import write_report

    write_report(folder, _screen(), baseline=baseline)


@app.command()
def sweep(
    context: typer.Context,
    preset: Annotated[Path, typer.Argument(metavar="PRESET.toml", help="Preset with [sweep.METHOD] grids.")],
    out: Out,
    methods: Annotated[str | None, typer.Option(help="Only these of the preset's methods.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Training seeds, separated by commas.", show_default="0")] = None,
    data_root: DataRoot = None,
    device: Device = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Try every point of a preset's grids, and choose by accuracy on validation episodes."""
    from .presets import combine, read_preset

    flags = {name: value for name, value in context.params.items() if name not in ("out", "preset")}
    settings = combine(read_preset(preset), flags)
    if not settings.grids:
        raise InputError(f"expected grids to sweep in {preset}, got none: add a table such as [sweep.maml]")
    swept = settings.values["methods"] if methods is not None else list(settings.grids)
    without = [method for method in swept if method not in settings.grids]
    if without:
        raise InputError(f"{preset} has no [sweep.{without[0]}]: it sweeps {', '.join(settings.grids)}")
    _require_folder(out)

    from ..engine.distributed import is_first, process_group
    from .plan import make_plan
    from .records import open_folder
    from .sweep import run_sweep

    plan = make_plan(settings)
    _require_data_root(plan.data_root, settings.values.get("data_root"))
    with _interruptible(), process_group(plan.device), open_folder(out, plan.experiment):
        choices = run_sweep(plan, swept, out, _provenance(plan), Console(stderr=True, quiet=not is_first()))
        if not is_first():
            return
    console = _screen()
    console.print((out / "sweep.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    for choice in choices:
        if choice.at_edge:
            names = ", ".join(choice.at_edge)
            console.print(f"{choice.point.method}: best at the edge of {names}, widen the grid", markup=False)


@app.command("list")
def list_names() -> None:
    """Show tasksets, backbones, and methods with their options."""
    from rich.table import Table

    from .. import engine, tasks

    summaries = {
        "tasksets": tasks.list_tasksets(),
        "backbone": {name: backbone.summary for name, backbone in engine.BACKBONES.items()},
        "method": {name: method.summary for name, method in engine.METHODS.items()},
    }
    screen = _screen()
    for title, entries in summaries.items():
        table = Table(title, "summary", box=None, pad_edge=False, header_style="bold")
        for name, summary in entries.items():
            options = engine.METHODS[name].defaults if title == "method" else {}
            shown = ", ".join(f"{key}={value}" for key, value in options.items())
            table.add_row(name, f"{summary}\n[dim]{shown}[/]" if shown else summary)
        screen.print(table, "")


def _screen() -> Console:
    """Standard output; into a file or a pipe, wide enough for the whole table."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def _provenance(plan: Plan) -> Provenance:
    from .provenance import collect

    return collect(sys.argv[1:], plan.device)


def _require_folder(out: Path) -> None:
    """Tell what :func:`open_folder` would, before torch has loaded."""
    for path in (out, *out.parents):
        if path.exists():
            if not path.is_dir():
                raise InputError(f"expected a folder to write into, but {path} is a file: try another --out")
            return


def _require_data_root(root: Path, given: str | None) -> None:
    if given is not None and not root.is_dir():
        raise InputError(
            f"--data-root must be an existing folder, got {given}: try the folder that holds the data sets"
        )


@contextmanager
def _interruptible() -> Iterator[None]:
    from ..engine.distributed import ProcessLost

    continues = "the same command continues from the last checkpoint"
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\nl2l-hyper: stopped; {continues}", err=True)
        raise typer.Exit(130) from None
    except ProcessLost as lost:
        typer.echo(f"l2l-hyper: error: {lost}; {continues}", err=True)
        raise typer.Exit(1) from None
