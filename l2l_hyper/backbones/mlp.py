"""A multi-layer perceptron, for vectors."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import nn

from ..settings import Count, checked_arguments
from .network import Network
from .shapes import SampleShape, cannot_read

__all__ = ["mlp"]


@checked_arguments
def mlp(ways: Count, sample_shape: SampleShape, *, sizes: tuple[Count, ...] = (64, 64)) -> nn.Module:
    """Linear layers with ReLU, for vectors; samples of any other shape are made flat.

    Args:
        ways: outputs of the last layer.
        sample_shape: shape of one sample.
        sizes: of the hidden layers.

    Raises:
        InputError: for samples that are single numbers.
    """
    if not sample_shape:
        raise cannot_read("mlp", "samples with at least one dimension", sample_shape)
    widths = [math.prod(sample_shape), *sizes]
    layers = [layer for read, made in pairwise(widths) for layer in (nn.Linear(read, made), nn.ReLU())]
    return Network(nn.Sequential(nn.Flatten(), *layers), widths[-1], ways)
