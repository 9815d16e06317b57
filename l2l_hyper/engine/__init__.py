"""The engine: meta-train, select on validation episodes, meta-test, for every method alike."""

from .backbones import BACKBONES, Backbone
from .config import Experiment, Run
from .methods import METHODS, Method
from .training import Progress, train_and_test

__all__ = ["BACKBONES", "METHODS", "Backbone", "Experiment", "Method", "Progress", "Run", "train_and_test"]
