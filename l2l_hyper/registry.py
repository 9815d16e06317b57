"""Things by name: built in, registered, found through entry points, or spelled ``package.module:object``."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Generic, TypeVar

from .errors import InputError

__all__ = ["Registry", "unknown_name"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of thing, each imported when it is first asked for.

    Args:
        kind: what the things are, for messages: "method", "backbone", ...
        group: the entry-point group by which other packages add theirs.
        builtin: ``"module:object"`` by name, of the things that come with this package.
        wrap: makes an entry of a bare object that ``package.module:object`` names or an entry point gives.
    """

    def __init__(self, kind: str, group: str, builtin: dict[str, str], wrap: Callable[[str, object], T]) -> None:
        self.kind, self.group = kind, group
        self._wrap = wrap
        self._paths = dict(builtin)
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> None:
        """Add an entry; registering under the same name again replaces it, unless it is one of this package's.

        Raises:
            InputError: for a name that is empty, holds one of the characters ``:,=@`` or whitespace, or is taken.
        """
        if not name or any(c in ":,=@" or c.isspace() for c in name):
            raise InputError(f"the name of a {self.kind} must be without spaces, ':', ',', '=' and '@', got {name!r}")
        if name in self._paths:
            raise InputError(f"{name!r} is a {self.kind} of l2l_hyper itself; register yours under another name")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        """The entry called ``name``, or the object that ``package.module:object`` spells.

        Raises:
            InputError: for a name that nothing has, with the nearest ones; for an object that cannot be imported.
        """
        if name not in self._entries:
            if name in self._paths:
                self._entries[name] = self._wrap(name, self._load(self._paths[name]))
            elif ":" in name:
                return self._wrap(name, self._load(name))
            else:
                self._entries[name] = self._from_entry_point(name)
        return self._entries[name]

    def entry(self, name: str, found: object) -> T:
        """The entry of a bare object, which stays unregistered."""
        return self._wrap(name, found)

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def _names(self) -> list[str]:
        return list(dict.fromkeys([*self._paths, *self._entries, *(e.name for e in self._entry_points())]))

    def _entry_points(self) -> metadata.EntryPoints:
        return metadata.entry_points(group=self.group)

    def _from_entry_point(self, name: str) -> T:
        for point in self._entry_points():
            if point.name == name:
                return self._wrap(name, self._load(point.value))
        raise unknown_name(self.kind, name, self._names())

    def _load(self, path: str) -> object:
        module, _, attributes = path.partition(":")
        try:
            found: object = importlib.import_module(module)
            for attribute in attributes.split("."):
                found = getattr(found, attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"expected a {self.kind} in {path!r}, could not import it ({error})") from error
        return found


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not known, with the nearest ones that are."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"try one of {', '.join(known) or '(none)'}"
    return InputError(f"unknown {kind}: {name!r}; {hint}")
