"""Four convolutions, for images of any size: what most few-shot papers call Conv-4."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from .. import kernels
from ..functional import EpisodicBatchNorm
from ..settings import Count, Depth, Natural, checked_arguments
from .network import Network, PixelMean
from .shapes import SampleShape, convolved, image

__all__ = ["conv4"]


@checked_arguments
def conv4(
    ways: Count,
    sample_shape: SampleShape,
    *,
    channels: Count = 64,
    layers: Depth = 4,
    halvings: Natural | None = None,
    max_pool: bool = True,
    pooled: bool = False,
) -> nn.Module:
    """3x3 convolutions with BatchNorm, ReLU and max-pooling, for images of any size; in plain PyTorch.

    The features are those of ``learn2learn.vision.models.ConvBase``; see Vinyals et al. 2016, "Matching Networks for
    One Shot Learning", https://arxiv.org/abs/1606.04080.

    Args:
        ways: outputs of the last layer.
        sample_shape: ``(channels, height, width)`` of the images.
        channels: of each convolution.
        layers: number of convolutions.
        halvings: how many of them, from the first on, halve height and width; all if not given.
        max_pool: whether max-pooling halves them, or else the convolution, by a stride of 2.
        pooled: whether the features are means over all pixels; else all pixels, flat.

    Raises:
        InputError: for samples that are no images, or of which max-pooling leaves no pixel.
    """
    halvings = layers if halvings is None else min(halvings, layers)
    read, *sides = image("conv4", sample_shape, least=2**halvings if max_pool else 1)
    height, width = (convolved(side, halvings, 2, max_pool) for side in sides)
    blocks = [_block(channels if i else read, channels, 2 if i < halvings else 1, max_pool) for i in range(layers)]
    pooling = [PixelMean()] if pooled else []
    size = channels if pooled else channels * height * width
    return Network(nn.Sequential(*blocks, *pooling, nn.Flatten()), size, ways)


def _block(read: int, made: int, shrink: int, max_pool: bool) -> nn.Module:
    convolution = nn.Conv2d(read, made, 3, stride=1 if max_pool else shrink, padding=1)
    layers = OrderedDict[str, nn.Module](conv=convolution, normalize=nn.BatchNorm2d(made), relu=nn.ReLU())
    if max_pool and shrink > 1:
        layers["max_pool"] = nn.MaxPool2d(shrink)
    return _Block(layers)


class _Block(nn.Sequential):
    """Convolution, normalization, ReLU and, where the block halves images so, max-pooling."""

    def forward(self, x: Any) -> Any:
        norm = self.normalize
        made = norm.in_block([*self], x) if kernels.enabled() and isinstance(norm, EpisodicBatchNorm) else None
        return super().forward(x) if made is None else made
