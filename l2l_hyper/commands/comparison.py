"""The commands that compare methods: compare, report, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..experiment.plan import SETTINGS, from_flags, make_plan, merged, read_preset
from ..stopping import raised
from .common import Out, as_folder, require_folders, session, stdout, with_settings

__all__ = ["compare", "report", "sweep"]

Preset = Annotated[
    Path | None, typer.Option(metavar="FILE", help="TOML file of defaults for these flags, or a record.")
]


@with_settings(*SETTINGS)
def compare(*, out: Out, preset: Preset = None, **flags: Any) -> None:
    """Train methods, test them on the same episodes, and report."""
    plan = make_plan(merged({} if preset is None else read_preset(preset), from_flags(flags)))
    require_folders(plan, out, flags)

    from ..experiment.distributed import is_first
    from ..experiment.parts import Parts
    from ..experiment.records import read_records
    from ..experiment.runner import carry_out, say
    from ..report import write_report

    parts = Parts(plan)
    with session(plan, out) as (provenance, console):
        carry_out(parts, out, provenance, console)
        if not is_first():
            return
    # Another process may still be training the baseline: the table without it is better than none.
    tested = {record.run.method for record in read_records(out)}
    if plan.baseline is not None and plan.baseline not in tested:
        say(console, f"{plan.baseline} has no records in {out} yet: the table is without differences")
    with raised():
        write_report(out, stdout(), baseline=plan.baseline if plan.baseline in tested else None)


@with_settings("baseline")
def report(
    *,
    folder: Annotated[Path, typer.Argument(parser=as_folder, metavar="DIR", help="The --out of a comparison.")],
    shots: Annotated[int | None, typer.Option(help="Shots of the table, one of the comparison's --test-shots.")] = None,
    networks: Annotated[
        list[Path] | None,
        typer.Option(parser=as_folder, metavar="DIR", help="The same with another network, for accuracy against cost."),
    ] = None,
    **flags: Any,
) -> None:
    """Print the table of a comparison and write it as a page, Markdown, CSV, LaTeX and figures."""
    if not (folder / "records").is_dir():
        raise InputError(f"expected a folder with records, got {folder}: try the --out of `l2l-hyper compare`")
    from ..report import write_report

    with raised():
        write_report(folder, stdout(), baseline=flags["baseline"], shots=shots, networks=networks or ())


@with_settings("methods", "seeds", "data_root", "device", "memory_limit")
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
    require_folders(plan, out, flags)

    from ..experiment.distributed import is_first
    from ..experiment.parts import Parts
    from ..experiment.sweep import run_sweep

    parts = Parts(plan)
    with session(plan, out) as (provenance, console):
        choices = run_sweep(parts, swept, out, provenance, console)
        if not is_first():
            return
    console = stdout()
    console.print((out / "sweep.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    for choice in choices:
        if choice.at_edge:
            names = ", ".join(choice.at_edge)
            console.print(f"{choice.point.method}: best at the edge of {names}, widen the grid", markup=False)
