"""A second network beside the one that answers queries: an encoder of support sets, or a teacher."""

from __future__ import annotations

from torch import nn

from ..errors import InputError
from ..functional import EpisodicBatchNorm, convert_norm, share_copy
from .taskwise import TaskwiseNetwork

__all__ = ["second_network"]


def second_network(network: nn.Module) -> TaskwiseNetwork:
    """The network for T tasks at once, its parameters shared, its last layer unused.

    BatchNorm layers use running averages; normalization layers that say where their statistics come from keep to it.

    Raises:
        InputError: if no parameter requires a gradient and there are BatchNorm layers that have seen no batch.
    """
    second = TaskwiseNetwork(convert_norm(share_copy(network), "running", declared=False))
    second.release_head()
    if not any(p.requires_grad for p in second.parameters()):
        for name, norm in second.module.named_modules():
            if isinstance(norm, EpisodicBatchNorm) and norm.mode == "running" and not norm.num_batches_tracked:
                raise InputError(
                    f"expected a trained network, but its layer {name!r} has no running averages: train it with them, "
                    "or call convert_norm(network, 'support') if it was trained with statistics of the support set"
                )
    return second
