"""Few-shot tasks: episodes, tensor-backed tasksets, benchmarks and the embedded typeset glyphs."""

from __future__ import annotations

from .benchmarks import BenchmarkTasksets, get_tasksets, list_tasksets, manifest
from .episode import Episodes
from .taskset import TensorTaskset

__all__ = ["BenchmarkTasksets", "Episodes", "TensorTaskset", "get_tasksets", "list_tasksets", "manifest"]
