"""Learners: learn2learn's protocol over generated weights."""

from .base import Adapted, Learner
from .hyper_adapter import HyperAdapter

__all__ = ["Adapted", "HyperAdapter", "Learner"]
