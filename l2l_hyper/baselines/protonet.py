"""Prototypical Networks through ``l2l.nn.PrototypicalClassifier``, one task after the other."""

from __future__ import annotations

from torch import Tensor, nn

from .._learn2learn import learn2learn
from .base import AdaptedTask, OneByOne, support_pass

__all__ = ["ProtoNet"]


class ProtoNet(OneByOne):
    """Snell et al. 2017, https://arxiv.org/abs/1703.05175, squared Euclidean distance, by learn2learn's class.

    Args:
        features: the network up to its last layer.
    """

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def adapt_task(self, x: Tensor, y: Tensor) -> AdaptedTask:
        """A classifier of prototypes."""
        h, statistics = support_pass(self.features, x)
        classifier = learn2learn().nn.PrototypicalClassifier(h, y)
        size = classifier.prototypes.numel()
        return AdaptedTask(lambda q: classifier(self.features(q)), self.features, statistics, size)
