"""Mixed precision: what runs in a lower precision within ``torch.autocast``, and what must not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FullPrecisionLinear", "autocast_enabled", "autocast_now", "full_precision", "in_float32"]


def autocast_enabled(device: torch.device) -> bool:
    """Whether :class:`torch.autocast` is on for the device."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def autocast_now(device: torch.device) -> AbstractContextManager[Any]:
    """What :class:`torch.autocast` does on the device where this is called, to be entered again elsewhere."""
    if not autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.get_autocast_dtype(device.type))


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Within the block, nothing is cast on the device."""
    return torch.autocast(device.type, enabled=False) if autocast_enabled(device) else nullcontext()


def in_float32(tensor: Tensor) -> Tensor:
    """The tensor, in float32 where it is of half precision or bfloat16."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class FullPrecisionLinear(nn.Linear):
    """A linear layer that :class:`torch.autocast` leaves in the precision of its weights.

    Outputs such as minus a squared distance are small differences of large numbers, for which bfloat16 has too few
    digits.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Outputs in the precision of the weights."""
        with full_precision(input.device):
            return F.linear(input.to(self.weight.dtype), self.weight, self.bias)
