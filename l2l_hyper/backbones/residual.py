"""learn2learn's residual networks, for images of any size."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .._learn2learn import learn2learn
from ..settings import Count, Share, checked_arguments
from .network import Network, PixelMean
from .shapes import SampleShape, convolved, image

__all__ = ["resnet12", "wrn28"]


@checked_arguments
def resnet12(
    ways: Count, sample_shape: SampleShape, *, wider: bool = True, pooled: bool = True, dropout: Share = 0.0
) -> nn.Module:
    """l2l.vision.models.ResNet12 without DropBlock, which cannot run for many tasks at once.

    See Mishra et al. 2018, "A Simple Neural Attentive Meta-Learner", https://arxiv.org/abs/1707.03141, and Lee et al.
    2019, "Meta-Learning with Differentiable Convex Optimization", https://arxiv.org/abs/1904.03758.

    Args:
        ways: outputs of the last layer.
        sample_shape: ``(channels, height, width)`` of the images.
        wider: 64, 160, 320 and 640 channels, or else 64, 128, 256 and 512.
        pooled: whether the features are means over all pixels; else all pixels, flat.
        dropout: share of the features that is dropped in training.

    Raises:
        InputError: for samples that are no images of at least 16 x 16 pixels.
    """
    read, *sides = image("resnet12", sample_shape, least=16)
    height, width = (1, 1) if pooled else (convolved(side, 4, 2, True) for side in sides)
    network = learn2learn().vision.models.ResNet12(
        ways,
        hidden_size=(640 if wider else 512) * height * width,
        avg_pool=pooled,
        wider=wider,
        embedding_dropout=dropout,
        dropblock_dropout=0.0,
        channels=read,
    )
    if pooled:  # learn2learn's own takes the mean over 5 x 5 pixels, which images of 84 x 84 pixels leave
        network.features.avgpool = PixelMean()
    return network


@checked_arguments
def wrn28(
    ways: Count, sample_shape: SampleShape, *, width: Count = 10, stride: Count = 1, dropout: Share = 0.0
) -> nn.Module:
    """l2l.vision.models.WRN28: a wide residual network of 28 layers, features are means over pixels.

    See Zagoruyko and Komodakis 2016, "Wide Residual Networks", https://arxiv.org/abs/1605.07146, and Dhillon et al.
    2020, "A Baseline for Few-Shot Image Classification", https://arxiv.org/abs/1909.02729.

    Args:
        ways: outputs of the last layer.
        sample_shape: ``(channels, height, width)`` of the images.
        width: channels in units of those of a plain residual network, 16, 32 and 64.
        stride: of the first convolution. 2 halves each side of the images, for a quarter of the cost.
        dropout: share of the activations that is dropped within each block in training.

    Raises:
        InputError: for samples that are no images.
    """
    read = image("wrn28", sample_shape)[0]
    body = learn2learn().vision.models.wrn28.WideResNet(depth=28, widen_factor=width, dropout_rate=dropout)
    layers = OrderedDict(body.named_children())
    if read != 3 or stride != 1:
        layers["conv1"] = nn.Conv2d(read, 16, 3, stride=stride, padding=1)
    # learn2learn's own forward takes the mean over 21 x 21 pixels, which images of 84 x 84 pixels leave.
    layers.update(relu=nn.ReLU(), avgpool=PixelMean())
    return Network(nn.Sequential(layers), 64 * width, ways)
