"""ANIL through ``l2l.algorithms.MAML`` on the last layer, as learn2learn's scripts do it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..._learn2learn import learn2learn
from ...data.episode import SupportSet
from .. import anil
from .one_task import AdaptedTask, TaskByTask, support_pass

__all__ = ["Learn2learnANIL"]


class Learn2learnANIL(TaskByTask):
    """Raghu et al. 2020, https://arxiv.org/abs/1909.09157; the backbone must have ``features`` and ``classifier``."""

    def __init__(self, model: nn.Module, options: anil.ANILOptions) -> None:
        super().__init__()
        self.features: Any = model.features
        self.head = learn2learn().algorithms.MAML(model.classifier, lr=options.inner_lr)
        self.steps = options.steps

    def adapt_task(self, support: SupportSet) -> AdaptedTask:
        """Inner steps on a clone of the last layer."""
        differentiable = torch.is_grad_enabled()
        h, statistics = support_pass(self.features, support.x[0])
        with torch.enable_grad():
            head = self.head.clone(first_order=not differentiable)
            for _ in range(self.steps):
                head.adapt(support.loss(head(h)[None], support.y).sum())
        return AdaptedTask(lambda q: head(self.features(q)), self.features, statistics, list(head.parameters()))
