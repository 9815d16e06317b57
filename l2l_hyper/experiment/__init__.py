"""Experiments: one configuration, trained and tested the same way for every method, and the records of it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import compare, evaluate, train
    from .config import Experiment, Run
    from .records import Record, read_records
    from .result import Result
    from .trained import TrainedLearner, load

__all__ = [
    "Experiment",
    "Record",
    "Result",
    "Run",
    "TrainedLearner",
    "compare",
    "evaluate",
    "load",
    "read_records",
    "train",
]

# Imported when first asked for: settings and records are read without torch.
_WHERE = {
    "Experiment": "config",
    "Record": "records",
    "Result": "records",
    "Run": "config",
    "TrainedLearner": "trained",
    "compare": "api",
    "evaluate": "api",
    "load": "trained",
    "read_records": "records",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
