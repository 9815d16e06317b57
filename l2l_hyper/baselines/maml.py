"""MAML and ANIL through ``l2l.algorithms.MAML``, one task after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._learn2learn import learn2learn
from ..nn import statistics_of
from .base import Episodic, support_pass

__all__ = ["ANIL", "MAML"]


class MAML(Episodic):
    """Finn et al. 2017, https://arxiv.org/abs/1703.03400, by learn2learn's class.

    Args:
        model: the network; normalization layers as :func:`~l2l_hyper.nn.convert_norm` makes them.
        lr: inner learning rate.
        steps: inner steps.
    """

    one_by_one = True

    def __init__(self, model: nn.Module, *, lr: float, steps: int) -> None:
        super().__init__()
        self.maml = learn2learn().algorithms.MAML(model, lr=lr)
        self.steps = steps

    def adapt(self, support: Tensor, labels: Tensor) -> list[tuple[Any, Any]]:
        """A clone and the statistics of its support set, for each task."""
        differentiable = torch.is_grad_enabled()
        adapted = []
        with torch.enable_grad():
            for x, y in zip(support, labels, strict=True):
                learner = self.maml.clone(first_order=not differentiable)
                for _ in range(self.steps):
                    with statistics_of(learner.module, None):
                        loss = F.cross_entropy(learner(x), y)
                    learner.adapt(loss)
                with torch.set_grad_enabled(differentiable):
                    _, statistics = support_pass(learner.module, x, update=self.maml.module)
                adapted.append((learner, statistics))
        return adapted

    def predict(self, adapted: list[tuple[Any, Any]], query: Tensor) -> Tensor:
        """Outputs ``(T, Q, C)``."""
        outputs = []
        for (learner, statistics), x in zip(adapted, query, strict=True):
            with statistics_of(learner.module, statistics):
                outputs.append(learner(x))
        return torch.stack(outputs)

    def generated(self, adapted: list[tuple[Any, Any]]) -> int:
        """All parameters of the network."""
        return sum(p.numel() for p in self.maml.parameters())


class ANIL(Episodic):
    """Raghu et al. 2020, https://arxiv.org/abs/1909.09157: MAML on the last layer, as learn2learn's scripts do it.

    Args:
        features: the network up to its last layer.
        head: the last layer.
        lr: inner learning rate.
        steps: inner steps.
    """

    one_by_one = True

    def __init__(self, features: nn.Module, head: nn.Linear, *, lr: float, steps: int) -> None:
        super().__init__()
        self.features = features
        self.head = learn2learn().algorithms.MAML(head, lr=lr)
        self.steps = steps

    def adapt(self, support: Tensor, labels: Tensor) -> list[tuple[Any, Any]]:
        """A clone of the head and the statistics of the support set, for each task."""
        differentiable = torch.is_grad_enabled()
        adapted = []
        for x, y in zip(support, labels, strict=True):
            h, statistics = support_pass(self.features, x)
            with torch.enable_grad():
                head = self.head.clone(first_order=not differentiable)
                for _ in range(self.steps):
                    head.adapt(F.cross_entropy(head(h), y))
            adapted.append((head, statistics))
        return adapted

    def predict(self, adapted: list[tuple[Any, Any]], query: Tensor) -> Tensor:
        """Outputs ``(T, Q, C)``."""
        outputs = []
        for (head, statistics), x in zip(adapted, query, strict=True):
            with statistics_of(self.features, statistics):
                outputs.append(head(self.features(x)))
        return torch.stack(outputs)

    def generated(self, adapted: list[tuple[Any, Any]]) -> int:
        """Parameters of the last layer."""
        return sum(p.numel() for p in self.head.parameters())
