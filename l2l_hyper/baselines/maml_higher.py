"""MAML through ``higher``: a second implementation, to check that two agree."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import statistics_of
from .base import Episodic, support_pass

__all__ = ["HigherMAML"]


class HigherMAML(Episodic):
    """Finn et al. 2017 with the inner loop of Grefenstette et al. 2019, https://arxiv.org/abs/1910.01727.

    Args:
        model: the network; normalization layers as :func:`~l2l_hyper.nn.convert_norm` makes them.
        lr: inner learning rate.
        steps: inner steps.
    """

    one_by_one = True

    def __init__(self, model: nn.Module, *, lr: float, steps: int) -> None:
        super().__init__()
        self.model = model
        self.lr = lr
        self.steps = steps

    def adapt(self, support: Tensor, labels: Tensor) -> list[tuple[Any, Any]]:
        """A functional copy and the statistics of its support set, for each task."""
        higher = _higher()
        differentiable = torch.is_grad_enabled()
        adapted = []
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr)
        with torch.enable_grad():
            for x, y in zip(support, labels, strict=True):
                with higher.innerloop_ctx(
                    self.model, optimizer, copy_initial_weights=False, track_higher_grads=differentiable
                ) as (learner, inner):
                    for _ in range(self.steps):
                        with statistics_of(learner, None):
                            loss = F.cross_entropy(learner(x), y)
                        inner.step(loss)
                    with torch.set_grad_enabled(differentiable):
                        _, statistics = support_pass(learner, x, update=self.model)
                    adapted.append((learner, statistics))
        return adapted

    def predict(self, adapted: list[tuple[Any, Any]], query: Tensor) -> Tensor:
        """Outputs ``(T, Q, C)``."""
        outputs = []
        for (learner, statistics), x in zip(adapted, query, strict=True):
            with statistics_of(learner, statistics):
                outputs.append(learner(x))
        return torch.stack(outputs)

    def generated(self, adapted: list[tuple[Any, Any]]) -> int:
        """All parameters of the network."""
        return sum(p.numel() for p in self.model.parameters())


def _higher() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # its old spellings, told when Python first compiles them
        return importlib.import_module("higher")
