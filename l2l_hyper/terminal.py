"""Standard output and error that take any text, whatever their encoding, and when they are closed."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata

__all__ = ["one_line", "open_streams", "spelled"]

_SPELLED = "l2l_hyper.spelled"  # an error handler of Python's codecs
_ASCII = {
    **{"±": "+/-", "×": "x", "·": ".", "…": "...", "→": "->", "≤": "<=", "≥": ">="},
    **dict.fromkeys("−–—•", "-"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
}


def open_streams() -> None:
    """Open standard streams that are closed, and let characters that an encoding lacks be spelled in ASCII."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # Left closed, its number would go to the next file that is opened, and whatever prints would write there.
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SPELLED)
    if not os.environ.get("COLUMNS", "80").strip("0"):  # nothing can be printed in no columns
        del os.environ["COLUMNS"]


def one_line(text: str) -> str:
    r"""The text as one line without what a terminal would take for a command.

    >>> one_line("a\nb \x1b[31mred\u202e")
    'a b \ufffd[31mred\ufffd'
    """
    return "".join(character if character.isprintable() else "\ufffd" for character in " ".join(text.split()))


def spelled(text: str, encoding: str) -> str:
    """The text in characters that an encoding has.

    >>> spelled("accuracy 91.23 ± 0.40 % – Przewięźlikowski", "ascii")
    'accuracy 91.23 +/- 0.40 % - Przewiezlikowski'
    """
    return text.encode(encoding, _SPELLED).decode(encoding)


def _ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii_character, error.object[error.start : error.end])), error.end


def _ascii_character(character: str) -> str:
    if character in _ASCII:
        return _ASCII[character]
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


codecs.register_error(_SPELLED, _ascii)
