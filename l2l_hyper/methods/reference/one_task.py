"""What the implementations through other libraries share: one task after the other, and support statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...data.episode import SupportSet
from ...functional import Statistics, statistics_of, update_running
from ..contract import Method

__all__ = ["AdaptedTask", "TaskByTask", "support_pass"]


@dataclass(frozen=True)
class AdaptedTask:
    """A task that was adapted to.

    Attributes:
        outputs: samples to outputs.
        normalized: the module whose normalization layers use ``statistics``.
        statistics: of the support set.
        weights: what adaptation made.
    """

    outputs: Callable[[Tensor], Tensor]
    normalized: nn.Module
    statistics: Statistics
    weights: list[Tensor]


class TaskByTask(Method):
    """A method that loops over tasks; given one at a time, the graph of a task is freed before the next is built."""

    one_by_one = True

    def adapt_task(self, support: SupportSet) -> AdaptedTask:
        """Adapt to one task; samples ``(1, N, *)``."""
        raise NotImplementedError

    def adapt(self, support: SupportSet) -> list[AdaptedTask]:
        """Adapt to each task in turn."""
        return [self.adapt_task(one) for one in support]

    def predict(self, adapted: list[AdaptedTask], query: Tensor) -> Tensor:
        """Outputs ``(T, Q, C)``."""
        outputs = []
        for task, x in zip(adapted, query, strict=True):
            with statistics_of(task.normalized, task.statistics):
                outputs.append(task.outputs(x))
        return torch.stack(outputs)


def support_pass(module: nn.Module, support: Tensor, update: nn.Module | None = None) -> tuple[Tensor, Statistics]:
    """Outputs on one support set and the statistics of the normalization layers under the module's present weights.

    Running averages, where that is the mode, are taken up by ``update``, the module of which ``module`` may be a clone.
    """
    with statistics_of(module, None) as statistics:
        outputs = module(support)
    target = module if update is None else update
    if target.training:
        update_running(target, {name: (mean[None], var[None]) for name, (mean, var) in statistics.items()})
    return outputs, statistics
