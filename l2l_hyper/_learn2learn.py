"""Import learn2learn without what that does besides: text that gym prints, and draws from Python's random state."""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import warnings
from types import ModuleType

from .errors import InputError

__all__ = ["learn2learn"]


def learn2learn() -> ModuleType:
    """The :mod:`learn2learn` module, imported when first asked for.

    Raises:
        InputError: if learn2learn is not installed, or was not compiled for this Python.
    """
    state = random.getstate()  # something that PyTorch Lightning brings along draws from it
    # gym writes "Gym has been unmaintained ..." straight to stderr, and warns on newer numpy and Python versions.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("learn2learn")
        except ImportError as error:
            raise InputError(
                f"expected learn2learn to be importable, got: {error}; "
                "see docs/install.md on installing learn2learn, which has to be compiled"
            ) from error
        finally:
            random.setstate(state)
