"""What modules need to run many tasks at once: normalization, convolutions, weights put in and out of them."""

from .conv import task_convolutions
from .norm import Normalization, TaskNorm, convert_norm, statistics_of, update_running
from .weights import call, install, share_copy, slots, tensors

__all__ = [
    "Normalization",
    "TaskNorm",
    "call",
    "convert_norm",
    "install",
    "share_copy",
    "slots",
    "statistics_of",
    "task_convolutions",
    "tensors",
    "update_running",
]
