r"""Modulation: weights below the last layer changed for each task, by a hypernetwork that reads its support set.

.. math:: W'_l = W_l + s\,\Delta_l, \qquad \Delta = g(e(H / \rho(H)))

where the encoder e pools the features H of the support samples, in units of their root mean square :math:`\rho`, by
attention or as a linear map of their mean, and the generator g makes changes of every weight: feature-wise ones, as in
Perez et al. 2018, "FiLM", https://arxiv.org/abs/1709.07871, low-rank ones, or both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..hypernet import FeatureWise, Generator, HyperNetwork, LowRank, Mean, SetAttention, Sum, Target
from .taskwise import TaskwiseNetwork

__all__ = ["Kind", "Modulation", "below_head", "root_mean_square"]

Kind = Literal["feature-wise", "low-rank", "both"]


class Modulation(HyperNetwork):
    """Changes of weights ``{name: (T, *shape)}`` from features ``(T, N, D)``, zero before training.

    Args:
        features: D.
        shapes: shapes of the weights by name.
        kind: "feature-wise", "low-rank" for the matrices and kernels, or "both" added.
        attention: whether the features are pooled by attention, or else as a linear map of their mean.
        width: of what they are pooled to.
        blocks, heads, dropout: of the attention.
    """

    def __init__(
        self,
        features: int,
        shapes: Mapping[str, torch.Size],
        kind: Kind,
        *,
        attention: bool = True,
        width: int,
        blocks: int,
        heads: int,
        dropout: float,
    ) -> None:
        encoder: nn.Module = Mean(features, width)
        if attention:
            encoder = SetAttention(features, width, width=width, blocks=blocks, heads=heads, dropout=dropout)
        super().__init__(encoder, _generator(width, shapes, kind))

    def forward(self, features: Tensor, base: Mapping[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        """Changes of the base weights."""
        dtype = next(self.parameters()).dtype
        features = features.to(dtype) / root_mean_square(features).to(dtype)
        return self.generator(self.encoder(features), {name: w.to(dtype) for name, w in base.items()})


def below_head(network: TaskwiseNetwork, patterns: str) -> list[str]:
    """Names of the parameters below the last layer that shell patterns, separated by commas, choose.

    Raises:
        InputError: if a pattern matches no parameter.
    """
    chosen = [pattern for pattern in patterns.split(",") if pattern]
    if not chosen:
        return []
    head = network.head_weights(network.head.weight, network.head.weight)
    return [name for name in Target.of(network.module, chosen).shapes if name not in head]


def root_mean_square(x: Tensor) -> Tensor:
    """Of each task's numbers, ``(T, 1, 1)`` from ``(T, N, D)``."""
    return x.square().mean((-2, -1), keepdim=True).clamp_min(1e-16).sqrt()


def _generator(width: int, shapes: Mapping[str, torch.Size], kind: Kind) -> Generator:
    matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    match kind:
        case "feature-wise":
            return FeatureWise(width, Target(shapes))
        case "low-rank":
            return LowRank(width, Target(shapes), init="zero")
        case "both":
            first = FeatureWise(width, Target(shapes))
            return Sum(first, LowRank(width, Target(matrices), init="zero")) if matrices else first
    raise InputError(f"modulation must be one of {', '.join(get_args(Kind))}, got {kind!r}")
