"""The command line `l2l-hyper`: compare, report, sweep, evaluate, predict, data, list."""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from ._version import __version__
from .errors import InputError
from .experiment.plan import SETTINGS, Plan, from_flags, make_plan, merged, read_preset
from .files import expanded
from .stopping import Stopped, raised
from .terminal import one_line

if TYPE_CHECKING:
    from .experiment.provenance import Provenance

# What loads torch, scipy or matplotlib is imported inside the commands: help and a mistyped flag answer at once.

__all__ = ["app", "main"]

app = typer.Typer(pretty_exceptions_enable=False)

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
        code = _complain(str(error))
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "l2l-hyper"
        code = _complain(f"{error.format_message().rstrip('. ')}: try `{command} --help`")
    except OSError as error:
        where = error.filename or "the output"
        code = _complain(f"cannot use {where} ({error.strerror}): make room, or try another place", code=1)
    except typer.Abort:
        code = 130
    except Stopped as stopped:
        _say(f"\nl2l-hyper: {stopped}")
        code = stopped.code
    sys.exit(code)


def _complain(message: str, *, code: int = 2) -> int:
    _say(f"l2l-hyper: error: {one_line(message)}")
    return code


def _say(line: str) -> None:
    with suppress(OSError):  # the terminal may be gone, or the disk that stderr goes to full
        typer.echo(line, err=True)


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


def _with_settings(*names: str, defaults: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
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


def _folder(text: str) -> Path:
    if not text.strip():  # which a Path takes for the present folder
        raise typer.BadParameter("expected the name of a folder, got an empty one; '.' is the present folder")
    return Path(text)


Out = Annotated[
    Path,
    typer.Option(
        parser=_folder, metavar="DIR", help="For records, trained weights (in checkpoints/), table and plots."
    ),
]
OptionalOut = Annotated[
    Path | None, typer.Option("--out", parser=_folder, metavar="DIR", help="For the record, table and plots, if kept.")
]
Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Trained weights, OUT/checkpoints/METHOD-seedN.safetensors.")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Import the code that the checkpoint names, as package.module:object.")
]
Preset = Annotated[
    Path | None, typer.Option(metavar="FILE", help="TOML file of defaults for these flags, or a record.")
]


@app.command()
@_with_settings(*SETTINGS)
def compare(*, out: Out, preset: Preset = None, **flags: Any) -> None:
    """Train methods, test them on the same episodes, and report."""
    plan = make_plan(merged({} if preset is None else read_preset(preset), from_flags(flags)))
    _require_folders(plan, out, flags)

    from .experiment.distributed import is_first
    from .experiment.parts import Parts
    from .experiment.records import read_records
    from .experiment.runner import carry_out, say
    from .report import write_report

    parts = Parts(plan)
    with _session(plan, out) as (provenance, console):
        carry_out(parts, out, provenance, console)
        if not is_first():
            return
    # Another process may still be training the baseline: the table without it is better than none.
    tested = {record.run.method for record in read_records(out)}
    if plan.baseline is not None and plan.baseline not in tested:
        say(console, f"{plan.baseline} has no records in {out} yet: the table is without differences")
    with raised():
        write_report(out, _screen(), baseline=plan.baseline if plan.baseline in tested else None)


@app.command()
@_with_settings("baseline")
def report(
    *,
    folder: Annotated[Path, typer.Argument(parser=_folder, metavar="DIR", help="The --out of a comparison.")],
    shots: Annotated[int | None, typer.Option(help="Shots of the table, one of the comparison's --test-shots.")] = None,
    networks: Annotated[
        list[Path] | None,
        typer.Option(parser=_folder, metavar="DIR", help="The same with another network, for accuracy against cost."),
    ] = None,
    **flags: Any,
) -> None:
    """Print the table of a comparison and write it as a page, Markdown, CSV, LaTeX and figures."""
    if not (folder / "records").is_dir():
        raise InputError(f"expected a folder with records, got {folder}: try the --out of `l2l-hyper compare`")
    from .report import write_report

    with raised():
        write_report(folder, _screen(), baseline=flags["baseline"], shots=shots, networks=networks or ())


@app.command()
@_with_settings("methods", "seeds", "data_root", "device", "memory_limit")
def sweep(
    *,
    preset: Annotated[
        Path, typer.Argument(metavar="PRESET.toml", help="Preset with grids, a table sweep.METHOD for each method.")
    ],
    out: Out,
    **flags: Any,
) -> None:
    """Try every point of a preset's grids, and choose by the score on validation episodes."""
    given = from_flags(flags)
    plan = make_plan(merged(read_preset(preset), given))
    if not plan.grids:
        raise InputError(f"expected grids to sweep in {preset}, got none: add a table such as [sweep.maml]")
    swept = plan.methods if "methods" in given else tuple(plan.grids)
    without = [method for method in swept if method not in plan.grids]
    if without:
        raise InputError(f"{preset} has no [sweep.{without[0]}]: it sweeps {', '.join(plan.grids)}")
    _require_folders(plan, out, flags)

    from .experiment.distributed import is_first
    from .experiment.parts import Parts
    from .experiment.sweep import run_sweep

    parts = Parts(plan)
    with _session(plan, out) as (provenance, console):
        choices = run_sweep(parts, swept, out, provenance, console)
        if not is_first():
            return
    console = _screen()
    console.print((out / "sweep.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    for choice in choices:
        if choice.at_edge:
            names = ", ".join(choice.at_edge)
            console.print(f"{choice.point.method}: best at the edge of {names}, widen the grid", markup=False)


@app.command()
@_with_settings(
    *("tasksets", "tasksets_options", "ways", "shots", "test_shots", "queries", "test_episodes", "split_seed"),
    *("metric", "data_root", "device", "memory_limit"),
    defaults=False,
)
def evaluate(*, checkpoint: Checkpoint, out: OptionalOut = None, trust: Trust = False, **flags: Any) -> None:
    """Test a trained checkpoint on the test tasks of any tasksets; what is not given is as in its training."""
    from .experiment.trained import read_trained
    from .experiment.transfer import record_of, transfer_plan

    trained = read_trained(checkpoint, trust=trust)
    plan = transfer_plan(trained, from_flags(flags))
    _require_folders(plan, out, flags)

    from .experiment.distributed import from_first, is_first
    from .experiment.parts import Parts
    from .experiment.records import write_record
    from .experiment.runner import existing
    from .report import print_summary, summarize, write_report

    parts = Parts(plan, trains=False)
    (run,) = plan.runs(parts.options)
    with _session(plan, out) as (provenance, _):
        if (record := existing(run, parts, out)) is None:
            record = record_of(trained, checkpoint, parts, provenance)
            if out is not None:
                from_first(functools.partial(write_record, out, record))
        if not is_first():
            return
    with raised():
        if out is None:
            print_summary(summarize([record]), _screen())
        else:
            write_report(out, _screen())


@app.command()
def predict(
    *,
    checkpoint: Checkpoint,
    support: Annotated[Path, typer.Option(parser=_folder, metavar="DIR", help="Folder of one sub-folder per class.")],
    query: Annotated[Path, typer.Option(parser=_folder, metavar="DIR", help="Folder of the files to classify.")],
    out: Annotated[
        Path | None, typer.Option(parser=_folder, metavar="DIR", help="For predictions.csv and a picture, if kept.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device to compute on, such as cuda.")] = "cpu",
    trust: Trust = False,
) -> None:
    """Classify your own files by a trained checkpoint, from a few examples of each class."""
    from rich.table import Table

    from .experiment.prediction import predict
    from .experiment.trained import load
    from .report.escape import for_screen
    from .report.predictions import write_predictions

    with raised():
        found, screen = predict(load(checkpoint, device=device, trust=trust), support, query), _screen()
        written = None if out is None else write_predictions(out, found)
    table = Table("file", "predicted", "probability %", box=None, pad_edge=False, header_style="bold")
    shares = (100 * found.probabilities.amax(-1)).tolist()
    for path, name, share in zip(found.files, found.predicted, shares, strict=True):
        table.add_row(for_screen(path.name, screen), for_screen(name, screen), f"{share:.1f}")
    screen.print(table)
    if written is not None:
        screen.print(f"written to {out}: {', '.join(written)}", markup=False)


@app.command()
@_with_settings("data_root")
def data(
    *,
    name: Annotated[
        str | None, typer.Argument(metavar="TASKSETS", help="What to fetch; all are listed if left out.")
    ] = None,
    **flags: Any,
) -> None:
    """Fetch the data of tasksets by learn2learn's downloaders, or show what is there."""
    from rich.table import Table

    from .bridge.downloads import FROM, fetch, is_there
    from .bridge.loaders import LOADERS
    from .data import TASKSETS
    from .report.escape import for_screen

    root, screen = expanded(make_plan(from_flags(flags)).data_root).absolute(), _screen()
    if name is None:
        table = Table("tasksets", "there", "what", box=None, pad_edge=False, header_style="bold")
        for known in TASKSETS:
            there, what = "–", TASKSETS[known].summary
            if known in LOADERS:
                there, what = "yes" if is_there(known, root) else "no", f"{root}/ with {LOADERS[known].expects}"
            table.add_row(known, there, for_screen(what, screen))
        screen.print(table)
    elif name not in LOADERS:
        raise InputError(f"{name} is nothing to fetch: {TASKSETS[name].summary}; try one of {', '.join(LOADERS)}")
    elif is_there(name, root):
        screen.print(f"{name} is in {root}", markup=False, soft_wrap=True)
    else:
        say = Console(stderr=True)
        say.print(f"fetching {name} from {FROM[name]} into {root}", markup=False, soft_wrap=True)
        with raised():
            fetch(name, root)
        screen.print(f"{name} is in {root}", markup=False, soft_wrap=True)


@app.command("list")
def list_names() -> None:
    """Show tasksets, metrics, backbones and methods, with their options."""
    from rich.markup import escape
    from rich.table import Table

    from .backbones import BACKBONES
    from .data import METRICS, list_tasksets
    from .methods import METHODS
    from .settings import defaults, described

    screen = _screen()

    def show(title: str, entries: dict[str, str]) -> None:
        table = Table(title, "summary", box=None, pad_edge=False, header_style="bold")
        for name, summary in entries.items():
            table.add_row(name, summary)
        screen.print(table, "")

    def with_options(summary: str, values: dict[str, Any], texts: dict[str, str]) -> str:
        lines = [f"[dim]{key}={escape(str(value))}  {escape(texts.get(key, ''))}[/]" for key, value in values.items()]
        return "\n".join([escape(summary), *lines])

    show("tasksets", {name: escape(summary) for name, summary in list_tasksets().items()})
    show("metric", {name: f"{'higher' if METRICS[name].higher_is_better else 'lower'} is better" for name in METRICS})
    backbones = {name: BACKBONES[name] for name in BACKBONES}
    show("backbone", {name: with_options(entry.summary, entry.options, {}) for name, entry in backbones.items()})
    methods = {name: (METHODS[name].summary, METHODS[name].options) for name in METHODS}
    shown = {n: with_options(summary, defaults(o), described(o)) for n, (summary, o) in methods.items()}
    show("method", shown)


def _screen() -> Console:
    """Standard output; into a file or a pipe, wide enough for the whole table."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def _require_folders(plan: Plan, out: Path | None, flags: dict[str, Any]) -> None:
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
def _session(plan: Plan, out: Path | None) -> Iterator[tuple[Provenance, Console]]:
    """Hold the folder, alone or with the other processes; what stops the block ends as one line on stderr."""
    from .experiment.distributed import ProcessLost, is_first, process_group
    from .experiment.folder import open_folder
    from .experiment.provenance import collect, public_command

    try:
        with raised(), process_group(plan.device), nullcontext() if out is None else open_folder(out, plan.experiment):
            yield collect(public_command(sys.argv[1:]), plan.device), Console(stderr=True, quiet=not is_first())
    except KeyboardInterrupt:  # where the signals are not caught, as in a program that calls this one
        raise Stopped(signal.SIGINT) from None
    except ProcessLost as lost:
        raise typer.Exit(_complain(f"{lost}; the same command continues from the last checkpoint", code=1)) from None
