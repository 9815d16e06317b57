"""The commands of `l2l-hyper`, as functions; what loads torch, scipy or matplotlib is imported inside them.

So help and a mistyped flag answer at once.
"""

from __future__ import annotations

from .comparison import compare, report, sweep
from .names import data, list_names
from .trained import evaluate, predict

__all__ = ["compare", "data", "evaluate", "list_names", "predict", "report", "sweep"]
