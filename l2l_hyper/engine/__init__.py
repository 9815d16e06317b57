"""The engine: meta-train, select on validation episodes, meta-test, for every method alike."""

from .backbones import BACKBONES, Backbone
from .config import Experiment, Run
from .methods import METHODS, Method
from .training import MEMORY_LIMIT_MB, Progress, train_and_test

__all__ = [
    "BACKBONES",
    "MEMORY_LIMIT_MB",
    "METHODS",
    "Backbone",
    "Experiment",
    "Method",
    "Progress",
    "Run",
    "train_and_test",
]
