"""The search space of the study of architectures: three stages of blocks, each of one operation."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from l2l_hyper.backbones.network import Network, PixelMean

__all__ = ["Architecture", "build", "draw"]

OPERATIONS = ("1x1", "3x3", "5x5", "separable", "bottleneck", "pool")


@dataclass(frozen=True)
class Architecture:
    """Channels of the first stage, and the blocks of each: an operation, and whether there is a shortcut."""

    channels: int
    stages: tuple[tuple[tuple[str, bool], ...], ...]


def draw(
    rng: random.Random, channels: tuple[int, ...] = (8, 16, 24, 32), blocks: tuple[int, int] = (1, 4)
) -> Architecture:
    """A random architecture; few use all operations, so that they differ by more than their size."""
    chosen = rng.sample(OPERATIONS, rng.randint(1, 3))
    stages = [[(rng.choice(chosen), rng.random() < 0.5) for _ in range(rng.randint(*blocks))] for _ in range(3)]
    return Architecture(rng.choice(channels), tuple(map(tuple, stages)))


class Shortcut(nn.Module):
    """x + f(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def convolution(read: int, made: int, kernel: int = 1, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(read, made, kernel, padding=kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(made), nn.ReLU()]


def operation(name: str, channels: int) -> nn.Module:
    inner = channels // 4
    layers: dict[str, list[nn.Module]] = {
        "separable": [*convolution(channels, channels, 3, channels)[:1], *convolution(channels, channels)],
        "bottleneck": [*convolution(channels, inner), *convolution(inner, inner, 3), *convolution(inner, channels)],
        "pool": [nn.AvgPool2d(3, 1, 1)],
    }
    return nn.Sequential(*(layers.get(name) or convolution(channels, channels, int(name[0]))))


def build(architecture: Architecture, classes: int) -> nn.Module:
    """The network, for 32 x 32 images."""
    channels, layers = architecture.channels, OrderedDict[str, nn.Module]()
    layers["stem"] = nn.Sequential(*convolution(3, channels, 3))
    for i, stage in enumerate(architecture.stages):
        if i:
            layers[f"halve{i}"] = nn.Sequential(nn.MaxPool2d(2), *convolution(channels, 2 * channels))
            channels *= 2
        for j, (name, shortcut) in enumerate(stage):
            body = operation(name, channels)
            layers[f"stage{i}block{j}"] = Shortcut(body) if shortcut else body
    layers["mean"] = PixelMean()
    return Network(nn.Sequential(layers), channels, classes)
