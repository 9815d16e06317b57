"""Few-shot tasks: episodes, tensor-backed tasksets, benchmarks, the typeset glyphs, and learn2learn's own tasksets."""

from __future__ import annotations

from .benchmarks import BenchmarkTasksets, get_tasksets, list_tasksets, manifest
from .convert import convert
from .episode import Episodes
from .register import register
from .sampled import SampledTaskset
from .taskset import TensorTaskset

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
