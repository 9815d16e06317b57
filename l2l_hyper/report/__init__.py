"""Reports: records -> statistics -> tables and figures.

>>> from l2l_hyper import report
>>> summary = report.summarize(l2l_hyper.compare(...))  # doctest: +SKIP
>>> report.print_summary(summary)  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plots import accuracy_figure, learning_curves_figure
    from .summary import Row, Summary, summarize
    from .tables import print_summary, to_csv, to_latex, to_markdown
    from .write import write_report

__all__ = [
    "Row",
    "Summary",
    "accuracy_figure",
    "learning_curves_figure",
    "print_summary",
    "summarize",
    "to_csv",
    "to_latex",
    "to_markdown",
    "write_report",
]

# Each comes when it is asked for: tables need no matplotlib.
_MODULES = {
    "plots": ("accuracy_figure", "learning_curves_figure"),
    "summary": ("Row", "Summary", "summarize"),
    "tables": ("print_summary", "to_csv", "to_latex", "to_markdown"),
    "write": ("write_report",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
