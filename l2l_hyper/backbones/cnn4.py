"""learn2learn's own networks of four convolutions, with its own initial weights."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le
from torch import nn

from .._learn2learn import learn2learn
from ..settings import Count, Depth, checked_arguments
from .shapes import SampleShape, cannot_read, convolved, image

__all__ = ["cnn4", "omniglot_cnn"]


@checked_arguments
def omniglot_cnn(ways: Count, sample_shape: SampleShape, *, channels: Count = 64, layers: Depth = 4) -> nn.Module:
    """l2l.vision.models.OmniglotCNN: 3x3 convolutions of stride 2, features are means over pixels; 1x28x28 alone.

    Args:
        ways: outputs of the last layer.
        sample_shape: ``(1, 28, 28)``.
        channels: of each convolution.
        layers: number of convolutions.

    Raises:
        InputError: for other samples.
    """
    if tuple(sample_shape) != (1, 28, 28):
        raise cannot_read("omniglot-cnn", "images of shape (1, 28, 28)", sample_shape)
    return learn2learn().vision.models.OmniglotCNN(ways, hidden_size=channels, layers=layers)


@checked_arguments
def cnn4(
    ways: Count,
    sample_shape: SampleShape,
    *,
    channels: Count = 64,
    layers: Annotated[int, Ge(1), Le(4)] = 4,
    max_pool: bool = True,
) -> nn.Module:
    """l2l.vision.models.CNN4: 3x3 convolutions with max-pooling, features are all pixels.

    Args:
        ways: outputs of the last layer.
        sample_shape: ``(channels, height, width)`` of the images.
        channels: of each convolution.
        layers: number of convolutions, 1 to 4; learn2learn makes each pool by ``4 // layers`` times 2.
        max_pool: whether max-pooling makes the image smaller, or else the convolutions' stride.

    Raises:
        InputError: for samples that are no images, or of which max-pooling leaves no pixel; for more than four layers.
    """
    stride = 2 * (4 // layers)
    read, *sides = image("cnn4", sample_shape, least=stride**layers if max_pool else 1)
    height, width = (convolved(side, layers, stride, max_pool) for side in sides)
    return learn2learn().vision.models.CNN4(
        ways,
        hidden_size=channels,
        layers=layers,
        channels=read,
        max_pool=max_pool,
        embedding_size=channels * height * width,
    )
