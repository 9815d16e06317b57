"""Deprecated place of :class:`l2l_hyper.bridge.HyperTransform`."""

import warnings

from .bridge import HyperTransform

__all__ = ["HyperTransform"]

warnings.warn("l2l_hyper.optim is the old name of l2l_hyper.bridge", DeprecationWarning, stacklevel=2)
