"""Layers that read the tasks of a batch one after the other, and what their running averages take up."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["InstanceAverages", "reads_in_turn"]


def reads_in_turn(module: nn.Module) -> str | None:
    """The name of a layer for which ``vmap`` has no rule, or only a slow one; ``None`` if there is none."""
    names = (
        name for name, layer in module.named_modules() if _recurrent(layer) or (_averages(layer) and layer.training)
    )
    return next(names, None)


class InstanceAverages:
    """Running averages of instance normalization while tasks pass one after the other.

    They move once, by the mean over the tasks of what each would move them by, as those of
    :func:`~l2l_hyper.functional.update_running` do.

    Args:
        module: the network.
    """

    def __init__(self, module: nn.Module) -> None:
        self._buffers = [b for layer in module.modules() if _averages(layer) for b in layer.buffers()]
        self._before = [b.clone() for b in self._buffers]
        self._after: list[list[Tensor]] = []

    def end_task(self) -> None:
        """Note where a task has moved them, and put them back."""
        self._after.append([b.clone() for b in self._buffers])
        self._set(self._before)

    def move(self) -> None:
        """Move them by the mean over the tasks."""
        self._set(torch.stack(after).double().mean(0) for after in zip(*self._after, strict=True))

    @torch.no_grad()
    def _set(self, values: Iterable[Tensor]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value)


def _recurrent(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.RNNBase, nn.RNNCellBase))


def _averages(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.running_mean is not None
