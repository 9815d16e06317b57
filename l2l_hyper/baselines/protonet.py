"""Prototypical Networks through ``l2l.nn.PrototypicalClassifier``, one task after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._learn2learn import learn2learn
from ..nn import statistics_of
from .base import Episodic, support_pass

__all__ = ["ProtoNet"]


class ProtoNet(Episodic):
    """Snell et al. 2017, https://arxiv.org/abs/1703.05175, squared Euclidean distance, by learn2learn's class.

    Args:
        features: the network up to its last layer.
    """

    one_by_one = True

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def adapt(self, support: Tensor, labels: Tensor) -> list[tuple[Any, Any]]:
        """A classifier of prototypes and the statistics of the support set, for each task."""
        adapted = []
        for x, y in zip(support, labels, strict=True):
            h, statistics = support_pass(self.features, x)
            adapted.append((learn2learn().nn.PrototypicalClassifier(h, y), statistics))
        return adapted

    def predict(self, adapted: list[tuple[Any, Any]], query: Tensor) -> Tensor:
        """Outputs ``(T, Q, C)``: minus the squared distances."""
        outputs = []
        for (classifier, statistics), x in zip(adapted, query, strict=True):
            with statistics_of(self.features, statistics):
                outputs.append(classifier(self.features(x)))
        return torch.stack(outputs)

    def generated(self, adapted: list[tuple[Any, Any]]) -> int:
        """Numbers in the prototypes."""
        return adapted[0][0].prototypes.numel()
