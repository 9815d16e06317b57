"""What the engine asks of every method: adapt to support sets, predict queries."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..nn import recorded_statistics, statistics_of, update_running

__all__ = ["Episodic", "support_pass"]


class Episodic(nn.Module):
    """A method as the engine trains and tests it.

    Attributes:
        one_by_one: whether to give one task at a time.  A method that loops over tasks asks for it, so that the
            graph of one task is freed before the next is built.
    """

    one_by_one: bool = False

    def adapt(self, support: Tensor, labels: Tensor) -> Any:
        """Adapt to T tasks from samples ``(T, N, ...)`` and labels ``(T, N)``; the result goes to :meth:`predict`."""
        raise NotImplementedError

    def predict(self, adapted: Any, query: Tensor) -> Tensor:
        """Outputs ``(T, Q, C)`` on queries ``(T, Q, ...)``."""
        raise NotImplementedError

    def generated(self, adapted: Any) -> int:
        """How many numbers adaptation made for one task."""
        raise NotImplementedError


def support_pass(
    module: nn.Module, support: Tensor, update: nn.Module | None = None
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Outputs on one support set and the statistics of the normalization layers under the module's present weights.

    Running averages, where that is the mode, are taken up by ``update``, the module of which ``module`` may be a clone.
    """
    with statistics_of(module, None):
        outputs = module(support)
        statistics = recorded_statistics(module)
    target = module if update is None else update
    if target.training:
        update_running(target, {name: (mean[None], var[None]) for name, (mean, var) in statistics.items()})
    return outputs, statistics
