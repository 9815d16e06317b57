"""What the pages of the documentation have in them: blocks of code, and commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

__all__ = ["PAGES", "ROOT", "commands", "steps"]

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"^(?: {4}.*\n)+", re.M)
COMMAND = re.compile(r"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*((?:l2l-hyper|make|python|torchrun) .*)", re.M)


def steps(page: Path) -> list[tuple[int, str, str]]:
    """Line number, language and source of each block from top to bottom; the language may be "indented"."""
    text = page.read_text(encoding="utf-8")
    unfenced = FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    found = [(text.count("\n", 0, m.start(2)), m[1], m[2]) for m in FENCE.finditer(text)]
    found += [(unfenced.count("\n", 0, m.start()), "indented", m[0]) for m in INDENTED.finditer(unfenced)]
    return sorted(found)


def commands(source: str) -> list[list[str]]:
    """The commands of this project in a shell, as lists of words."""
    return [shlex.split(line, comments=True) for line in COMMAND.findall(source.replace("\\\n", " "))]
