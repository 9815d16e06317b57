"""Pickled arrays read without running what a pickle may name: data sets are published as pickles."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read_arrays"]

_array = np.zeros(1, np.uint8)
_NUMPY = {
    "multiarray._reconstruct": _array.__reduce__()[0],
    "multiarray.scalar": _array[0].__reduce__()[0],
    "numeric._frombuffer": _array.__reduce_ex__(5)[0],
}
_ALLOWED = {
    **{f"{core}.{name}": made for core in ("numpy.core", "numpy._core") for name, made in _NUMPY.items()},
    **{"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype, "collections.OrderedDict": collections.OrderedDict},
    **{f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in (bytes, bytearray, set)},
    "_codecs.encode": str.encode,  # how Python 3 writes bytes for Python 2
}


def read_arrays(path: Path) -> Any:
    """What a pickle of numpy arrays, numbers, texts, lists and dictionaries holds; texts of Python 2 are latin-1.

    Raises:
        pickle.UnpicklingError: for a pickle that names anything else.
    """
    with open(path, "rb") as file:
        return _Arrays(file, encoding="latin1").load()


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only arrays are read")
        return found
