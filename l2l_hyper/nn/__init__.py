"""What modules need to run many tasks at once: normalization, convolutions, precision, weights put in and out."""

from .conv import task_convolutions
from .fold import folding_pays
from .norm import Normalization, TaskNorm, convert_norm, statistics_of, update_running
from .precision import FullPrecisionLinear, autocast_enabled, autocast_now, full_precision
from .weights import call, install, share_copy, slots, tensors

__all__ = [
    "FullPrecisionLinear",
    "Normalization",
    "TaskNorm",
    "autocast_enabled",
    "autocast_now",
    "call",
    "convert_norm",
    "folding_pays",
    "full_precision",
    "install",
    "share_copy",
    "slots",
    "statistics_of",
    "task_convolutions",
    "tensors",
    "update_running",
]
