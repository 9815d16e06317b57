"""Hypernetwork adaptation for learn2learn: networks that read a task and write the weights for it."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import InputError

if TYPE_CHECKING:
    from .backbones import register_backbone
    from .bridge import HyperAdapter, HyperSGD
    from .data import register_metric, register_tasksets
    from .experiment import compare, evaluate, load, train
    from .functional import EpisodicBatchNorm, convert_norm
    from .hypernet import HyperNetwork
    from .methods import register_method

__all__ = [
    "EpisodicBatchNorm",
    "HyperAdapter",
    "HyperNetwork",
    "HyperSGD",
    "InputError",
    "__version__",
    "compare",
    "convert_norm",
    "evaluate",
    "load",
    "register_backbone",
    "register_method",
    "register_metric",
    "register_tasksets",
    "train",
]

# Imported when first asked for: the command line answers --help before torch has loaded.
_WHERE = {
    "EpisodicBatchNorm": "functional",
    "HyperAdapter": "bridge",
    "HyperNetwork": "hypernet",
    "HyperSGD": "bridge",
    "compare": "experiment",
    "convert_norm": "functional",
    "evaluate": "experiment",
    "load": "experiment",
    "register_backbone": "backbones",
    "register_method": "methods",
    "register_metric": "data",
    "register_tasksets": "data",
    "train": "experiment",
}
_SUBMODULES = (
    *("backbones", "bridge", "data", "experiment", "functional"),
    *("hypernet", "kernels", "methods", "report", "statistics", "uses"),
)
_DEPRECATED_SUBMODULES = ("lightning", "optim", "tasks")


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    if name in (*_SUBMODULES, *_DEPRECATED_SUBMODULES):
        return importlib.import_module(f".{name}", __name__)
    if name == "TaskNorm":
        warnings.warn("TaskNorm is the old name of EpisodicBatchNorm", DeprecationWarning, stacklevel=2)
        return importlib.import_module(".functional", __name__).EpisodicBatchNorm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
