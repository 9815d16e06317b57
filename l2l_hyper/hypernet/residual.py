"""Residuals: what a hypernetwork adds to the weights of a network, from what its last layer sees of the support set."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .network import HyperNetwork
from .support import Support

__all__ = ["BodyResidual", "HeadResidual"]


class HeadResidual(HyperNetwork):
    """Changes of the last layer, of which the encoder reads rows, samples, targets and predictions.

    They are in units of the layer's own weights and of the features, and so is what the encoder reads: whoever
    multiplies one or the other by a number changes nothing.
    """

    def forward(  # type: ignore[override]
        self, support: Support, weight: Tensor, bias: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Changes of a weight ``(T, C, D)`` and a bias ``(T, C)``, and the unit of each, without gradient."""
        unit, length = _rms(weight), _rms(support.features)
        bias_unit = (unit * length).squeeze(-1) * support.features.shape[-1] ** 0.5
        rows = torch.cat([weight / unit, (bias / bias_unit).unsqueeze(-1)], -1)
        delta = super().forward(rows, support.features / length, support.targets, support.predictions(weight, bias))
        return (delta["weight"], delta["bias"]), (unit, bias_unit)


class BodyResidual(HyperNetwork):
    """Changes of any weights, of which the encoder reads the samples in units of their own."""

    def forward(self, features: Tensor, base: Mapping[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        """Changes of the weights ``{name: (T, *shape)}`` from features ``(T, N, D)``."""
        return self.generator(self.encoder(features / _rms(features)), base)


def _rms(x: Tensor) -> Tensor:
    return x.detach().square().mean((-2, -1), keepdim=True).sqrt().clamp_min(1e-8)
