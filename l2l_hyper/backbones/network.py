"""Features, then a linear classifier: the form that every backbone has."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Network", "PixelMean"]


class Network(nn.Module):
    """A network that classifies by a linear layer on features.

    Args:
        features: samples ``(N, *)`` to features ``(N, size)``.
        size: number of features.
        ways: outputs of the last layer.
    """

    def __init__(self, features: nn.Module, size: int, ways: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(size, ways)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, ways)``."""
        return self.classifier(self.features(x))


class PixelMean(nn.Module):
    """Means over the pixels of images ``(N, C, H, W)``, shape ``(N, C)``; unlike torch's pooling, fast under vmap."""

    def forward(self, x: Tensor) -> Tensor:
        """The means."""
        return x.mean((2, 3))
