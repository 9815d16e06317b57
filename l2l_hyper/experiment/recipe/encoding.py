"""What a frozen network makes of all training samples, computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...data.taskset import TensorTaskset
from ...errors import InputError
from ...functional import EpisodicBatchNorm, full_precision, in_float32

__all__ = ["encoded", "with_encoded"]

_AT_ONCE = 512  # samples


def encoded(taskset: TensorTaskset, network: nn.Module, device: torch.device) -> Tensor:
    """The features ``(N, E)`` of a network on a device of the N samples of a taskset, neither augmented nor turned."""
    if device.type == "cpu":
        network.to(memory_format=torch.channels_last)
    parts = []
    with torch.no_grad(), full_precision(device):
        for at in torch.arange(len(taskset.x)).split(_AT_ONCE):
            x = taskset.at(at).to(device)
            parts.append(in_float32(network(x[None]).features[0]))
    return torch.cat(parts)


def with_encoded(taskset: Any, network: nn.Module, device: torch.device) -> TensorTaskset:
    """The taskset, whose episodes carry what a frozen second network on a device makes of their samples.

    Raises:
        InputError: for anything but a TensorTaskset that turns no images, and for a network whose features of a sample
            depend on others.
    """
    if not isinstance(taskset, TensorTaskset):
        raise InputError(
            f"encode_once needs a training taskset that draws from one tensor, a TensorTaskset, got "
            f"{type(taskset).__name__}; use encode_once=false"
        )
    if taskset.rotations:
        raise InputError(
            f"encode_once needs images as they are, got rotations={taskset.rotations!r}; use encode_once=false"
        )
    for name, norm in network.named_modules():
        if isinstance(norm, EpisodicBatchNorm) and norm.mode != "running":
            raise InputError(
                f"encode_once needs an encoder that reads each sample by itself, but its layer {name!r} normalizes by "
                f"statistics of the {norm.mode} set; use encode_once=false, or train the encoder with running averages"
            )
    return taskset.with_encoded(encoded(taskset, network, device))
