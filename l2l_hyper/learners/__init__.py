"""Learners: learn2learn's protocol over generated weights."""

from .base import Learner
from .batch import Adapted, BatchLearner
from .hyper_adapter import HyperAdapter

__all__ = ["Adapted", "BatchLearner", "HyperAdapter", "Learner"]
