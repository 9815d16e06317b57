"""A summary as a table of at most six columns for LaTeX, with the packages booktabs and siunitx."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .columns import Column, columns, describe, notes
from .escape import for_latex
from .summary import Row, Summary

__all__ = ["to_latex"]

_COLUMNS = 6
_NUMBER = re.compile(r"([+−]?)([\d,]+)(?:\.(\d+))?(?: ± ([\d.]+))?")
_TABLE = r"""%% needs \usepackage{booktabs,siunitx}
\begin{table}
  \centering
  \setlength{\belowcaptionskip}{4pt}
  \setlength{\tabcolsep}{5pt}
  \caption{%s}
  \label{tab:results}
  \footnotesize
  \sisetup{separate-uncertainty=true,table-align-uncertainty=false,detect-weight=true,retain-explicit-plus=true}
  \begin{tabular}{%s}
    \toprule
    %s \\
    \midrule
    %s \\
    \bottomrule
  \end{tabular}
\end{table}
"""


def to_latex(summary: Summary) -> str:
    """The first six columns that say something as a ``table``, with the protocol as its caption."""
    shown = columns(summary)[:_COLUMNS]
    task, *protocol = describe(summary)
    about = [f"{summary.metric.name.capitalize()} on {task}.", *(f"{line[:1].upper()}{line[1:]}." for line in protocol)]
    caption = " ".join(map(for_latex, [*about, *notes(summary, shown)]))
    cells = [[_cell(column, row) for column in shown] for row in summary.rows]
    kinds = "".join("l" if column.is_text else _kind([column.cell(row) for row in summary.rows]) for column in shown)
    head = " & ".join(f"{{{for_latex(column.title)}}}" for column in shown)
    return _TABLE % (caption, kinds, head, " \\\\\n    ".join(map(" & ".join, cells)))


def _cell(column: Column, row: Row) -> str:
    text = column.cell(row)
    number = None if column.is_text else _NUMBER.fullmatch(text)
    if number is None:
        return f"{{{for_latex(text)}}}"
    plain = text.replace("−", "-").replace(",", "").replace("±", r"\pm")
    return rf"\bfseries {plain}" if column.is_score and row.best else plain


def _kind(cells: Sequence[str]) -> str:
    """The column type of siunitx that aligns such numbers."""
    found = [match.groups(default="") for match in map(_NUMBER.fullmatch, cells) if match]
    if not found:
        return "r"
    signs, wholes, decimals, half_widths = zip(*found, strict=True)
    sign, whole = "+" * any(signs), max(len(digits.replace(",", "")) for digits in wholes)
    uncertain = max(len(half_width.replace(".", "").lstrip("0")) for half_width in half_widths)
    return f"S[table-format={sign}{whole}.{max(map(len, decimals))}{f'({uncertain})' if any(half_widths) else ''}]"
