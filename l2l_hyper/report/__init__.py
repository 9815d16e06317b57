"""Reports: records -> statistics -> tables and figures.

>>> from l2l_hyper import report
>>> summary = report.summarize(l2l_hyper.compare(...))  # doctest: +SKIP
>>> report.print_summary(summary)  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .curves import cost_figure, shots_figure
    from .episode import episode_figure
    from .latex import to_latex
    from .page import Picture, to_html
    from .plots import accuracy_figure, learning_curves_figure
    from .style import render
    from .summary import Row, Summary, summarize
    from .tables import print_summary, to_csv, to_markdown
    from .weights import weights_figure
    from .write import write_report

__all__ = [
    "Picture",
    "Row",
    "Summary",
    "accuracy_figure",
    "cost_figure",
    "episode_figure",
    "learning_curves_figure",
    "print_summary",
    "render",
    "shots_figure",
    "summarize",
    "to_csv",
    "to_html",
    "to_latex",
    "to_markdown",
    "weights_figure",
    "write_report",
]

# Each comes when it is asked for: tables need no matplotlib.
_MODULES = {
    "curves": ("cost_figure", "shots_figure"),
    "episode": ("episode_figure",),
    "latex": ("to_latex",),
    "page": ("Picture", "to_html"),
    "plots": ("accuracy_figure", "learning_curves_figure"),
    "style": ("render",),
    "summary": ("Row", "Summary", "summarize"),
    "tables": ("print_summary", "to_csv", "to_markdown"),
    "weights": ("weights_figure",),
    "write": ("write_report",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
