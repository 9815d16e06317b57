"""What a frozen network makes of all training samples, computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...data.taskset import TensorTaskset
from ...errors import InputError
from ...functional import EpisodicBatchNorm, full_precision
from ...methods.second_network import SecondNetwork

__all__ = ["encoded", "of_all_samples", "reads_others"]

_AT_ONCE = 128  # samples


def encoded(taskset: Any, network: SecondNetwork, device: torch.device) -> Tensor:
    """What a network on a device reads ``(N, E)`` of the N samples of a taskset, neither augmented nor turned.

    Raises:
        InputError: for anything but a TensorTaskset, and for a network whose features of a sample depend on others.
    """
    if not isinstance(taskset, TensorTaskset):
        raise InputError(
            "subclasses and encode_once need a training taskset that draws from one tensor, a TensorTaskset, got "
            f"{type(taskset).__name__}; use subclasses=0 and encode_once=false"
        )
    if (layer := reads_others(network)) is not None:
        raise InputError(
            f"subclasses and encode_once need an encoder that reads each sample by itself, but its layer {layer!r} "
            "does not normalize by running averages; train the encoder with normalization='running'"
        )
    if device.type == "cpu":
        network.to(memory_format=torch.channels_last)
    with full_precision(device):
        return of_all_samples(taskset, lambda x: network.read(x[None])[0], device)


def of_all_samples(taskset: TensorTaskset, read: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """What is read of samples ``(n, *)`` on a device, ``(n, E)``, for all N of a taskset, as they are, ``(N, E)``."""
    indices = torch.arange(len(taskset.x)).split(_AT_ONCE)
    with torch.no_grad():
        return torch.cat([read(taskset.at(at).to(device)) for at in indices])


def reads_others(network: nn.Module) -> str | None:
    """Name of a normalization layer, if any, by which features of a sample depend on others in evaluation."""
    norms = ((name, m) for name, m in network.named_modules() if isinstance(m, EpisodicBatchNorm))
    return next((name for name, norm in norms if norm.mode != "running"), None)
