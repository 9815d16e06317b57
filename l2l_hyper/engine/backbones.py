"""Backbones by name: learn2learn's own networks, the same for every method of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .._learn2learn import learn2learn
from ..errors import InputError

__all__ = ["BACKBONES", "Backbone"]


@dataclass(frozen=True)
class Backbone:
    """A network with ``features`` and a last layer ``classifier``.

    Attributes:
        name: as ``--backbone`` takes it.
        summary: one line for ``l2l-hyper list``.
        image_shape: shape ``(C, H, W)`` of the images it reads.
        build: number of ways and of channels a layer, to the network.
    """

    name: str
    summary: str
    image_shape: tuple[int, int, int]
    build: Callable[[int, int], nn.Module]

    def __call__(self, ways: int, hidden: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """The network for a number of ways; raises :class:`InputError` for images it cannot read."""
        if tuple(image_shape) != self.image_shape:
            fitting = [b.name for b in BACKBONES.values() if b.image_shape == tuple(image_shape)]
            raise InputError(
                f"backbone {self.name!r} reads images of shape {self.image_shape}, these tasksets hold "
                f"{tuple(image_shape)}; try {' or '.join(fitting) or 'other tasksets'}"
            )
        return self.build(ways, hidden)


def _omniglot_cnn(ways: int, hidden: int) -> nn.Module:
    return learn2learn().vision.models.OmniglotCNN(ways, hidden_size=hidden)


def _cnn4(ways: int, hidden: int) -> nn.Module:
    return learn2learn().vision.models.CNN4(ways, hidden_size=hidden)


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone(
            "omniglot-cnn", "l2l.vision.models.OmniglotCNN, four 3x3 stride-2 convolutions", (1, 28, 28), _omniglot_cnn
        ),
        Backbone("cnn4", "l2l.vision.models.CNN4, four 3x3 convolutions with max-pooling", (3, 84, 84), _cnn4),
    )
}
