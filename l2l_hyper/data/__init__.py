"""Few-shot tasks: episodes, tasksets of tensors and of benchmarks, and metrics, by name."""

from .episode import ACCURACY, SQUARED_ERROR, Episodes, Metric, SupportSet
from .manifest import manifest
from .registry import (
    METRICS,
    TASKSETS,
    BenchmarkTasksets,
    Taskset,
    get_tasksets,
    list_tasksets,
    register_metric,
    register_tasksets,
)
from .taskset import TensorTaskset

__all__ = [
    "ACCURACY",
    "METRICS",
    "SQUARED_ERROR",
    "TASKSETS",
    "BenchmarkTasksets",
    "Episodes",
    "Metric",
    "SupportSet",
    "Taskset",
    "TensorTaskset",
    "get_tasksets",
    "list_tasksets",
    "manifest",
    "register_metric",
    "register_tasksets",
]
