"""What all figures share: sizes for print, the colour of every method, and the bytes of a file."""

from __future__ import annotations

import io
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .escape import for_plot
from .summary import Summary

__all__ = [
    "COLORS",
    "LABEL_WIDTH",
    "MARKERS",
    "WIDTH",
    "array",
    "draw_legend",
    "looks",
    "render",
    "score_name",
    "styled",
    "task",
    "with_legend",
]

WIDTH = 5.5  # inches: the text of a page with wide margins
LABEL_WIDTH = 28  # characters in a line of a method's name
_COLUMNS = 2  # of a legend

# Those of Okabe and Ito, which colour-blind readers tell apart, with brown in the place of yellow, too faint on white,
# and of black, too faint on a dark page.
COLORS = ("#CC79A7", "#009E73", "#E69F00", "#0072B2", "#56B4E9", "#D55E00", "#8C6D31")
_COLOR_OF = dict(  # of the methods that are most often in one figure
    zip(("r2d2", "protonet", "protonet-distilled", "hyper-adapter", "anil", "maml", "gidaris"), COLORS, strict=True)
)
_COLOR_OF["hyper-adapter-transductive"] = _COLOR_OF["hyper-adapter"]
_SPREAD = 6  # the start of a hash that gives the other methods of this package colours that differ most
MARKERS, _DASHES = "os^DvPX<>*", ("-", "--", ":", "-.")

_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "figure.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
    "pdf.fonttype": 42,  # publishers refuse the other kind
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "l2l_hyper",  # the same figure gives the same file
}
_ON_DARK = (
    "@media (prefers-color-scheme: dark) { svg { fill: #e3e7eb }"
    ' [style*="fill: #000000"] { fill: #e3e7eb !important } [style*="stroke: #000000"] { stroke: #e3e7eb !important } }'
)
styled = rc_context(_STYLE)  # type: ignore[arg-type]
"""Decorator of the functions that draw."""


def looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of every method, as arguments of ``Axes.plot``.

    The colour is a function of the name before "@" alone, so a method and its variants have it in every figure.  There
    are more methods than colours that colour-blind readers tell apart: those that share one have different markers.

    >>> looks(["maml", "protonet"])["maml"]
    {'color': '#D55E00', 'marker': 'o', 'linestyle': '-'}
    """
    found, before = {}, Counter[str]()
    for method in sorted(set(methods)):
        name = method.partition("@")[0]
        hashed = COLORS[zlib.crc32(name.encode(errors="replace"), _SPREAD) % len(COLORS)]
        color = _COLOR_OF.get(name, hashed)
        nth = before[color]
        before[color] += 1
        found[method] = {
            "color": color,
            "marker": MARKERS[nth % len(MARKERS)],
            "linestyle": _DASHES[nth % len(_DASHES)],
        }
    return found


def with_legend(labels: Sequence[str], *, panels: int = 1) -> tuple[Figure, Sequence[Axes]]:
    """A figure with panels side by side, and room below them for a legend of such labels."""
    lines = sum(1 + label.count("\n") for label in labels) / _COLUMNS
    figure = Figure(figsize=(WIDTH, 3 + 0.17 * lines))
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    return figure, list(axes)


def draw_legend(figure: Figure) -> None:
    """The legend below the panels, of what is drawn in the first."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=_COLUMNS, fontsize=7, handlelength=3)


@styled
def render(figure: Figure, form: str) -> bytes:
    """The figure as the bytes of a "png", "pdf" or "svg" file, the same for the same figure.

    An SVG has no background, and what is black in it is light on a dark page.
    """
    content, undated = io.BytesIO(), {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    figure.savefig(content, format=form, dpi=200, metadata=undated.get(form), transparent=form == "svg")
    return content.getvalue().replace(b"</style>", _ON_DARK.encode() + b"</style>", 1)


def array(values: Any) -> NDArray[np.float64]:
    """Numbers of an array or of a tensor, wherever it is."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)


def score_name(summary: Summary) -> str:
    """The metric with its unit."""
    return for_plot(summary.metric.name, width=32) + (" in %" if summary.metric.percent else "")


def task(summary: Summary, *, shots: bool = True) -> str:
    """Tasksets, ways, shots and chance."""
    text = for_plot(f"{summary.experiment.tasksets}, {summary.form}" if shots else summary.of_any_shots)
    return text if summary.chance is None else f"{text}, chance {summary.chance:.3g} %"
