"""What the engine asks of every method: adapt to support sets, predict queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import statistics_of, update_running

__all__ = ["AdaptedTask", "Episodic", "OneByOne", "support_pass"]


class Episodic(nn.Module):
    """A method as the engine trains and tests it.

    Attributes:
        one_by_one: whether to give one task at a time.
        changes_body: whether each task has features of its own.
    """

    one_by_one: bool = False
    changes_body: bool = False

    def adapt(self, support: Tensor, labels: Tensor) -> Any:
        """Adapt to T tasks from samples ``(T, N, ...)`` and labels ``(T, N)``; the result goes to :meth:`predict`."""
        raise NotImplementedError

    def predict(self, adapted: Any, query: Tensor) -> Tensor:
        """Outputs ``(T, Q, C)`` on queries ``(T, Q, ...)``."""
        raise NotImplementedError

    def generated(self, adapted: Any) -> int:
        """How many numbers adaptation made for one task."""
        raise NotImplementedError


@dataclass(frozen=True)
class AdaptedTask:
    """A task that was adapted to.

    Attributes:
        outputs: samples to outputs.
        normalized: the module whose normalization layers use ``statistics``.
        statistics: of the support set.
        generated: how many numbers adaptation made.
    """

    outputs: Callable[[Tensor], Tensor]
    normalized: nn.Module
    statistics: dict[str, tuple[Tensor, Tensor]]
    generated: int


class OneByOne(Episodic):
    """A method that loops over tasks; given one at a time, the graph of a task is freed before the next is built."""

    one_by_one = True

    def adapt_task(self, x: Tensor, y: Tensor) -> AdaptedTask:
        """Adapt to one task from samples ``(N, ...)`` and labels ``(N,)``."""
        raise NotImplementedError

    def adapt(self, support: Tensor, labels: Tensor) -> list[AdaptedTask]:
        """Adapt to each task in turn."""
        return [self.adapt_task(x, y) for x, y in zip(support, labels, strict=True)]

    def predict(self, adapted: list[AdaptedTask], query: Tensor) -> Tensor:
        """Outputs ``(T, Q, C)``."""
        outputs = []
        for task, x in zip(adapted, query, strict=True):
            with statistics_of(task.normalized, task.statistics):
                outputs.append(task.outputs(x))
        return torch.stack(outputs)

    def generated(self, adapted: list[AdaptedTask]) -> int:
        """Numbers made for the first task."""
        return adapted[0].generated


def support_pass(
    module: nn.Module, support: Tensor, update: nn.Module | None = None
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Outputs on one support set and the statistics of the normalization layers under the module's present weights.

    Running averages, where that is the mode, are taken up by ``update``, the module of which ``module`` may be a clone.
    """
    with statistics_of(module, None) as statistics:
        outputs = module(support)
    target = module if update is None else update
    if target.training:
        update_running(target, {name: (mean[None], var[None]) for name, (mean, var) in statistics.items()})
    return outputs, statistics
