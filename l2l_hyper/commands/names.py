"""The commands about what there is: data, list."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from ..errors import InputError
from ..experiment.plan import from_flags, make_plan
from ..files import expanded
from ..stopping import raised
from .common import stdout, with_settings

__all__ = ["data", "list_names"]


@with_settings("data_root")
def data(
    *,
    name: Annotated[
        str | None, typer.Argument(metavar="TASKSETS", help="What to fetch; all are listed if left out.")
    ] = None,
    **flags: Any,
) -> None:
    """Fetch the data of tasksets by learn2learn's downloaders, or show what is there."""
    from rich.table import Table

    from ..bridge.downloads import FROM, fetch, is_there
    from ..bridge.loaders import LOADERS
    from ..data import TASKSETS
    from ..report.escape import for_screen

    root, screen = expanded(make_plan(from_flags(flags)).data_root).absolute(), stdout()
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


def list_names() -> None:
    """Show tasksets, metrics, backbones and methods, with their options."""
    from rich.markup import escape
    from rich.table import Table

    from ..backbones import BACKBONES
    from ..data import METRICS, list_tasksets
    from ..methods import METHODS
    from ..settings import defaults, described

    screen = stdout()

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
