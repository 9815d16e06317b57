"""Text of records as each medium shows it: names may hold anything, and none of it becomes markup or a command."""

from __future__ import annotations

import html
import re
import textwrap

from rich.console import Console
from rich.text import Text

from ..terminal import one_line, spelled

__all__ = ["for_csv", "for_html", "for_latex", "for_markdown", "for_plot", "for_screen"]

_LATEX = {
    **{character: f"\\{character}" for character in "{}$&#_%"},
    **{"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "|": r"\textbar{}"},
    **{
        "≥": r"$\geq$",
        "<": "$<$",
        ">": "$>$",
        "±": r"$\pm$",
        "−": "$-$",
        "×": r"$\times$",
        "–": "--",
        "…": r"\ldots{}",
    },
    **{"[": "{[}", "*": "{*}"},  # which would be arguments of "\\"
}
_LETTERS = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿ"


def for_markdown(text: str) -> str:
    r"""The text within a line or a cell of Markdown; names with hyphens and underscores stay as they are.

    >>> print(for_markdown("a|b <script> $x$ *c* first_order"))
    a\|b &lt;script> \$x\$ \*c\* first_order
    """
    escaped = re.sub(r"([\\`*\[\]|$~]|(?<!\w)_|_(?!\w))", r"\\\1", one_line(text))
    escaped = re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", re.sub(r"&(?=#|\w+;)", "&amp;", escaped))
    # what would begin a heading, a quotation or a list
    return re.sub(r"^([#>]|[-+](?=\s)|\d(?=\d*[.)]\s))", lambda found: f"&#{ord(found[0])};", escaped)


def for_latex(text: str) -> str:
    r"""The text within a paragraph or a cell of LaTeX, in letters that every font has.

    >>> print(for_latex("50 % of [a_b] ± 1, Przewięźlikowski"))
    50 \% of {[}a\_b] $\pm$ 1, Przewiezlikowski
    """
    plain = (c if c in _LATEX or c in _LETTERS else spelled(c, "ascii") for c in one_line(text))
    return "".join(_LATEX.get(c, c) for c in "".join(plain))


def for_html(value: object) -> str:
    """The text within an element or an attribute of HTML.

    >>> for_html('<a href="x">')
    '&lt;a href=&quot;x&quot;&gt;'
    """
    return html.escape(one_line(str(value)))


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


def for_plot(text: str, width: int = 60) -> str:
    r"""The text of a label in a figure, where ``$`` begins no formula and a leading ``_`` hides nothing.

    It has two lines of ``width`` characters at most.

    >>> print(for_plot("$\\frac{$"), for_plot("_protonet"))
    \$\frac{\$  _protonet
    """
    lines = textwrap.wrap(one_line(text), width, max_lines=2, placeholder="…") or [""]
    return "\n".join(f" {line}" if line.startswith("_") else line for line in lines).replace("$", r"\$")
