"""learn2learn's image benchmarks, fetched by its own downloaders, whose files are checked before they are kept."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pickle
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._learn2learn import learn2learn
from ..errors import InputError
from .loaders import LOADERS, Loader

__all__ = ["FROM", "fetch", "is_there"]

_LEARN2LEARN = "https://zenodo.org/record/7978538"
FROM = {
    "omniglot": "https://github.com/brendenlake/omniglot",
    **dict.fromkeys(("mini-imagenet", "tiered-imagenet", "fc100", "cifarfs"), _LEARN2LEARN),
}
"""Where the files of each benchmark are."""


class _Fetched(BaseException):
    """Ends the constructor of a data set of learn2learn where it would unpickle what it has downloaded.

    It is no ``Exception``, at which the constructor would try another address.
    """


def is_there(name: str, root: Path) -> bool:
    """Whether the files of a benchmark are in a folder; whether they are whole is found out when they are read."""
    loader = LOADERS[name]
    return all(path.exists() for part in loader.parts for path in loader.needs(root, part))


def fetch(name: str, root: Path) -> None:
    """Download a benchmark into a folder.

    Raises:
        InputError: where that fails, with what to put where by hand.
    """
    loader = LOADERS[name]
    by_hand = f"download it from {FROM[name]} and put {loader.expects} into {root}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".l2l-hyper-") as temporary:
            folder = Path(temporary)
            _download(loader, folder)
            for part in loader.parts:
                loader.contents(folder, part)
            for path in folder.iterdir():
                os.rename(path, root / path.name)
    except Exception as error:  # of the network, of archives, of a page that says "not found" in the place of data
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"learn2learn could not download {name} ({what}); {by_hand}") from error


def _download(loader: Loader, folder: Path) -> None:
    cls: Any = getattr(learn2learn().vision.datasets, loader.dataset)
    modes = [{"mode": part} for part in loader.parts] if loader.parts != ("all",) else [{}]
    with _nothing_unpickled(importlib.import_module(cls.__module__)), contextlib.redirect_stdout(io.StringIO()):
        for mode in modes:
            with contextlib.suppress(_Fetched):
                cls(str(folder), download=True, **mode)


@contextlib.contextmanager
def _nothing_unpickled(module: Any) -> Iterator[None]:
    def stop(*args: Any) -> None:
        raise _Fetched

    before = getattr(module, "pickle", None)
    module.pickle = types.SimpleNamespace(load=stop, _Unpickler=stop, UnpicklingError=pickle.UnpicklingError)
    try:
        yield
    finally:
        if before is None:
            del module.pickle
        else:
            module.pickle = before
