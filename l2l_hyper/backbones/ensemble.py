"""Trained networks read as one, as in Dvornik et al. 2019, "Diversity with Cooperation: Ensemble Methods for Few-Shot
Classification", https://arxiv.org/abs/1903.11341.

The features of the members, each of unit length about the member's centre, stand side by side, so the cosine of two
samples is the mean of the members' cosines.

What differs from the paper: members were trained without each other, and features are joined in place of predictions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..settings import Count, Name, checked_arguments
from .network import Network
from .registry import BACKBONES
from .shapes import SampleShape

__all__ = ["ensemble"]


class _Member(nn.Module):
    """A network without its last layer, frozen and in evaluation mode."""

    def __init__(self, features: nn.Module, size: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("own_centre", torch.zeros(size))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> _Member:
        """Nothing: a member stays as it is."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of unit length."""
        return F.normalize(self.features(x) - self.own_centre, dim=-1)


class _SideBySide(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([member(x) for member in self], -1)


@checked_arguments
def ensemble(
    ways: Count, sample_shape: SampleShape, *, of: Name = "conv4", members: Count = 2, **options: Any
) -> nn.Module:
    """Trained networks read as one: their features side by side, each of unit length. ``pretrained`` names their files.

    Args:
        ways: outputs of the last layer.
        sample_shape: of the samples.
        of: the backbone of every member.
        members: how many there are.
        **options: of that backbone.

    Raises:
        InputError: as that backbone does, and for one that is not in two parts, ``features`` and ``classifier``.
    """
    networks = [cast(Network, BACKBONES[of].build(ways, sample_shape, options)) for _ in range(members)]
    if not all(isinstance(getattr(networks[0], name, None), nn.Module) for name in ("features", "classifier")):
        raise InputError(f"expected a backbone with features and classifier for an ensemble, got {of!r}; try conv4")
    size = networks[0].classifier.in_features
    return Network(_SideBySide(_Member(network.features, size) for network in networks), members * size, ways)
