"""Deprecated name of :mod:`l2l_hyper.bridge.lightning`."""

import warnings

from .bridge.lightning import LightningHyperAdapter, TrackTestAccuracyCallback

__all__ = ["LightningHyperAdapter", "TrackTestAccuracyCallback"]

warnings.warn("l2l_hyper.lightning is the old name of l2l_hyper.bridge.lightning", DeprecationWarning, stacklevel=2)
