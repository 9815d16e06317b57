"""Learners: learn2learn's protocol over generated weights."""

from .base import Learner
from .batch import Adapted, BatchLearner
from .hyper_adapter import HyperAdapter
from .hyper_sgd import HyperSGD

__all__ = ["Adapted", "BatchLearner", "HyperAdapter", "HyperSGD", "Learner"]
