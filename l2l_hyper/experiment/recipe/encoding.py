"""What a frozen network makes of all training samples, computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...data.taskset import TensorTaskset
from ...errors import InputError
from ...functional import EpisodicBatchNorm, full_precision
from ...methods.second_network import SecondNetwork

__all__ = ["encoded"]

_AT_ONCE = 512  # samples


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
    for name, norm in network.named_modules():
        if isinstance(norm, EpisodicBatchNorm) and norm.mode != "running":
            raise InputError(
                f"subclasses and encode_once need an encoder that reads each sample by itself, but its layer {name!r} "
                f"normalizes by statistics of the {norm.mode} set; train the encoder with normalization='running'"
            )
    if device.type == "cpu":
        network.to(memory_format=torch.channels_last)
    parts = []
    with torch.no_grad(), full_precision(device):
        for at in torch.arange(len(taskset.x)).split(_AT_ONCE):
            x = taskset.at(at).to(device)
            parts.append(network.read(x[None])[0])
    return torch.cat(parts)
