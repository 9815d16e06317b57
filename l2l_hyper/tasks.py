"""Deprecated name of :mod:`l2l_hyper.data`, with ``convert`` and ``register`` of :mod:`l2l_hyper.bridge`."""

import warnings

from .bridge import convert, register
from .bridge.learn2learn_taskset import Learn2learnTaskset as SampledTaskset
from .data import BenchmarkTasksets, Episodes, TensorTaskset, get_tasksets, list_tasksets, manifest

__all__ = [
    "BenchmarkTasksets",
    "Episodes",
    "SampledTaskset",
    "TensorTaskset",
    "convert",
    "get_tasksets",
    "list_tasksets",
    "manifest",
    "register",
]

warnings.warn("l2l_hyper.tasks is the old name of l2l_hyper.data", DeprecationWarning, stacklevel=2)
