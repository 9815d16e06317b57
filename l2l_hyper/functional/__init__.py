"""Modules as functions of their weights: calls under other weights, declared normalization, precision."""

from .call import call, clone_tree, install, replaced, share_copy, slots, tensors
from .generated import Generated
from .norm import (
    EpisodicBatchNorm,
    Normalization,
    Statistics,
    convert_norm,
    held_statistics,
    hold_statistics,
    normalized_by,
    statistics_of,
    update_running,
)
from .precision import autocast_enabled, autocast_now, full_precision, in_float32

__all__ = [
    "EpisodicBatchNorm",
    "Generated",
    "Normalization",
    "Statistics",
    "autocast_enabled",
    "autocast_now",
    "call",
    "clone_tree",
    "convert_norm",
    "full_precision",
    "held_statistics",
    "hold_statistics",
    "normalized_by",
    "in_float32",
    "install",
    "replaced",
    "share_copy",
    "slots",
    "statistics_of",
    "tensors",
    "update_running",
]
