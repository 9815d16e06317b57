"""Layers that read the tasks of a batch one after the other, and what their running averages take up."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional.norm import moving_averages

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
        self._buffers = {
            f"{prefix}.{name}": buffer
            for prefix, layer in module.named_modules()
            if _averages(layer) and layer.training
            for name, buffer in layer.named_buffers()
        }
        self._before = {name: buffer.clone() for name, buffer in self._buffers.items()}
        self._after: list[dict[str, Tensor]] = []

    def of_next_task(self) -> dict[str, Tensor]:
        """A copy of them by name, which the pass of one task moves."""
        self._after.append({name: buffer.clone() for name, buffer in self._before.items()})
        return self._after[-1]

    @torch.no_grad()
    def move(self) -> None:
        """Move them by the mean over the tasks."""
        with moving_averages:
            for name, buffer in self._buffers.items():
                moved = torch.stack([after[name] for after in self._after]).double().mean(0) - self._before[name]
                buffer.copy_(buffer + moved)


def _recurrent(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.RNNBase, nn.RNNCellBase))


def _averages(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.running_mean is not None
