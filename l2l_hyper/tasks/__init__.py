"""Few-shot tasks: episodes, tensor-backed tasksets, benchmarks and the embedded typeset glyphs."""

from __future__ import annotations

from .episode import Episodes
from .taskset import TensorTaskset

__all__ = ["Episodes", "TensorTaskset"]
