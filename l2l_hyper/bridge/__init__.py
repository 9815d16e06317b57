"""Everything learn2learn: its protocol around a method, its transforms, tasksets, benchmarks and Lightning modules."""

from __future__ import annotations

import importlib
from typing import Any

from .convert import convert
from .hyper_adapter import HyperAdapter
from .hyper_sgd import HyperSGD
from .protocol import Learner
from .register import register
from .transform import HyperTransform

__all__ = ["HyperAdapter", "HyperSGD", "HyperTransform", "Learner", "convert", "register"]


def __getattr__(name: str) -> Any:
    if name == "lightning":  # which takes seconds to import
        return importlib.import_module(".lightning", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
