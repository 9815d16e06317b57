"""What modules need to run many tasks at once: normalization, convolutions, weights put in and out of them."""

from .conv import task_convolutions
from .norm import Normalization, TaskNorm, convert_norm, recorded_statistics, statistics_of, update_running
from .weights import call, install, share_copy, slots

__all__ = [
    "Normalization",
    "TaskNorm",
    "call",
    "convert_norm",
    "install",
    "recorded_statistics",
    "share_copy",
    "slots",
    "statistics_of",
    "task_convolutions",
    "update_running",
]
