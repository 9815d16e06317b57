"""MAML and ANIL through ``l2l.algorithms.MAML``, one task after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._learn2learn import learn2learn
from ..nn import statistics_of
from .base import AdaptedTask, OneByOne, support_pass

__all__ = ["ANIL", "MAML"]


class MAML(OneByOne):
    """Finn et al. 2017, https://arxiv.org/abs/1703.03400, by learn2learn's class.

    Args:
        model: the network; normalization layers as :func:`~l2l_hyper.nn.convert_norm` makes them.
        lr: inner learning rate.
        steps: inner steps.
    """

    def __init__(self, model: nn.Module, *, lr: float, steps: int) -> None:
        super().__init__()
        self.maml = learn2learn().algorithms.MAML(model, lr=lr)
        self.steps = steps

    def adapt_task(self, x: Tensor, y: Tensor) -> AdaptedTask:
        """Inner steps on a clone, then the statistics of the support set under its new weights."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            learner = self.maml.clone(first_order=not differentiable)
            for _ in range(self.steps):
                with statistics_of(learner.module, None) as statistics:
                    loss = F.cross_entropy(learner(x), y)
                learner.adapt(loss)
        if statistics:  # which the queries use; so far they are of the weights before the last step
            _, statistics = support_pass(learner.module, x, update=self.maml.module)
        return AdaptedTask(learner, learner.module, statistics, sum(p.numel() for p in self.maml.parameters()))


class ANIL(OneByOne):
    """Raghu et al. 2020, https://arxiv.org/abs/1909.09157: MAML on the last layer, as learn2learn's scripts do it.

    Args:
        features: the network up to its last layer.
        head: the last layer.
        lr: inner learning rate.
        steps: inner steps.
    """

    def __init__(self, features: nn.Module, head: nn.Linear, *, lr: float, steps: int) -> None:
        super().__init__()
        self.features = features
        self.head = learn2learn().algorithms.MAML(head, lr=lr)
        self.steps = steps

    def adapt_task(self, x: Tensor, y: Tensor) -> AdaptedTask:
        """Inner steps on a clone of the last layer."""
        differentiable = torch.is_grad_enabled()
        h, statistics = support_pass(self.features, x)
        with torch.enable_grad():
            head = self.head.clone(first_order=not differentiable)
            for _ in range(self.steps):
                head.adapt(F.cross_entropy(head(h), y))
        size = sum(p.numel() for p in self.head.parameters())
        return AdaptedTask(lambda q: head(self.features(q)), self.features, statistics, size)
