"""Text of records as each medium shows it: names may hold anything, and none of it becomes markup or a command."""

from __future__ import annotations

import re

from rich.console import Console
from rich.text import Text

from ..terminal import one_line, spelled

__all__ = ["for_csv", "for_latex", "for_markdown", "for_plot", "for_screen"]

_LONGEST_IN_PLOT = 60  # characters
# What the table of tabulate does not do: symbols of this package, and what LaTeX would read as an argument of "\\".
_LATEX = {"±": r"$\pm$", "−": "$-$", "–": "--", r"\ensuremath{<}": "$<$", "[": "{[}", "*": "{*}", "|": r"\textbar{}"}


def for_markdown(text: str) -> str:
    r"""The text within a line or a cell of Markdown; names with hyphens and underscores stay as they are.

    >>> print(for_markdown("a|b <script> $x$ *c* first_order"))
    a\|b &lt;script> \$x\$ \*c\* first_order
    """
    escaped = re.sub(r"([\\`*\[\]|$~]|(?<!\w)_|_(?!\w))", r"\\\1", one_line(text))
    escaped = re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", re.sub(r"&(?=#|\w+;)", "&amp;", escaped))
    # what would begin a heading, a quotation or a list
    return re.sub(r"^([#>]|[-+](?=\s)|\d(?=\d*[.)]\s))", lambda found: f"&#{ord(found[0])};", escaped)


def for_latex(table: str) -> str:
    """A table that tabulate has escaped, with what it leaves.

    >>> for_latex("[a] & 1 ± 2")
    '{[}a] & 1 $\\\\pm$ 2'
    """
    for text, command in _LATEX.items():
        table = table.replace(text, command)
    return table


def for_csv(value: object) -> object:
    """The value of a cell; a text that a spreadsheet would take for a formula gets an apostrophe before it.

    >>> for_csv('=HYPERLINK("x")'), for_csv("protonet"), for_csv(-1.5)
    ('\\'=HYPERLINK("x")', 'protonet', -1.5)
    """
    if not isinstance(value, str):
        return value
    line = one_line(value)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def for_screen(text: str, console: Console) -> Text:
    """The text without markup or codes that a terminal obeys, in characters that the console has."""
    return Text(spelled(one_line(text), console.encoding))


def for_plot(text: str) -> str:
    r"""The text of a label in a figure, where ``$`` begins no formula and a leading ``_`` hides nothing.

    >>> print(for_plot("$\\frac{$"), for_plot("_protonet"))
    \$\frac{\$  _protonet
    """
    line = one_line(text)
    line = line if len(line) <= _LONGEST_IN_PLOT else f"{line[: _LONGEST_IN_PLOT - 1]}…"
    return line.replace("$", r"\$") if not line.startswith("_") else f" {line}".replace("$", r"\$")
