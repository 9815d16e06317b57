"""MAML through ``l2l.algorithms.MAML``."""

from __future__ import annotations

import torch
from torch import nn

from ..._learn2learn import learn2learn
from ...data.episode import SupportSet
from ...functional import statistics_of
from .. import maml
from .one_task import AdaptedTask, TaskByTask, support_pass

__all__ = ["Learn2learnMAML"]


class Learn2learnMAML(TaskByTask):
    """Finn et al. 2017, https://arxiv.org/abs/1703.03400, by learn2learn's class."""

    def __init__(self, model: nn.Module, options: maml.MAMLOptions) -> None:
        super().__init__()
        self.maml = learn2learn().algorithms.MAML(model, lr=options.inner_lr, first_order=options.first_order)
        self.steps = options.steps

    def adapt_task(self, support: SupportSet) -> AdaptedTask:
        """Inner steps on a clone, then the statistics of the support set under its new weights."""
        first_order = self.maml.first_order or not torch.is_grad_enabled()
        x, y = support.x[0], support.y
        with torch.enable_grad():
            learner = self.maml.clone(first_order=first_order)
            for _ in range(self.steps):
                with statistics_of(learner.module, None) as statistics:
                    loss = support.loss(learner(x)[None], y).sum()
                learner.adapt(loss)
        if statistics:  # which the queries use; so far they are of the weights before the last step
            _, statistics = support_pass(learner.module, x, update=self.maml.module)
        return AdaptedTask(learner, learner.module, statistics, list(learner.parameters()))
