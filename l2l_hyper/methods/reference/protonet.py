"""Prototypical Networks through ``l2l.nn.PrototypicalClassifier``."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..._learn2learn import learn2learn
from ...data.episode import SupportSet
from ...errors import InputError
from .. import protonet
from .one_task import AdaptedTask, TaskByTask, support_pass

__all__ = ["Learn2learnProtoNet"]


class Learn2learnProtoNet(TaskByTask):
    """Snell et al. 2017, https://arxiv.org/abs/1703.05175, by its class; the backbone needs ``features``."""

    def __init__(self, model: nn.Module, options: protonet.ProtoNetOptions) -> None:
        super().__init__()
        if options.temperature != "fixed":
            raise InputError("learn2learn's PrototypicalClassifier has no temperature; use implementation='batched'")
        self.features: Any = model.features

    def adapt_task(self, support: SupportSet) -> AdaptedTask:
        """A classifier of prototypes."""
        h, statistics = support_pass(self.features, support.x[0])
        classifier = learn2learn().nn.PrototypicalClassifier(h, support.y[0])
        return AdaptedTask(lambda q: classifier(self.features(q)), self.features, statistics, [classifier.prototypes])
