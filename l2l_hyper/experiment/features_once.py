"""Tests on features that the network makes of each sample once, where episodes would have it made many times."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..backbones.network import Network
from ..data import Taskset, TensorTaskset
from ..methods import Method, TaskwiseNetwork
from .recipe.encoding import encoded, of_all_samples, reads_others

__all__ = ["features_made_once"]


@contextmanager
def features_made_once(method: Method, taskset: Taskset, samples: int, device: torch.device) -> Iterator[Taskset]:
    """Within the block the method's network takes features in the place of samples.

    Nothing is changed where the taskset has as many samples as the episodes, nor for a method that does not say that
    it :attr:`~l2l_hyper.methods.contract.Method.reads_features_only`, or whose class has that from a base class alone;
    nor for a network that is no :class:`~l2l_hyper.backbones.network.Network`, or that normalizes by other statistics
    than running averages.

    Args:
        method: what is tested.
        taskset: where the episodes come from.
        samples: how many samples the episodes have together.
        device: where the method is.

    Yields:
        The taskset whose episodes the method is to be tested on: the same ones, of features.
    """
    network, encoder = getattr(method, "network", None), getattr(method, "encoder", None)
    if (
        not method.reads_features_only
        or "reads_features_only" not in vars(type(method))
        or not isinstance(taskset, TensorTaskset)
        or taskset.rotations
        or len(taskset.x) >= samples
        or not isinstance(network, TaskwiseNetwork)
        or type(network.module) is not Network
        or any(reads_others(part) is not None for part in (network, encoder) if part is not None)
    ):
        yield taskset
        return
    module, training = network.module, method.training
    body, _ = module.features, network.places  # which must be those of the whole network
    method.eval()
    tested = taskset.with_samples(of_all_samples(taskset, body, device).to(taskset.device))
    if encoder is not None:
        tested = tested.with_encoded(encoded(taskset, encoder, device))
    method.train(training)
    module.features = nn.Identity()
    try:
        yield tested
    finally:
        module.features = body
