r"""FRN, Wertheimer et al. 2021, "Few-Shot Classification with Feature Map Reconstruction Networks",
https://arxiv.org/abs/2012.01506.

A query is of the class from whose support positions its own feature map is best rebuilt.  With :math:`S_c` the
positions of all feature maps of class c as rows (k maps of r positions with d channels) and Q the r positions of a
query, the best linear rebuilding has the closed form

.. math:: \bar Q_c = \rho\,Q H_c, \qquad H_c = (S_c^\top S_c + \lambda I)^{-1} S_c^\top S_c, \qquad
          \lambda = \tfrac{kr}{d} e^\alpha, \qquad \rho = e^\beta

and the outputs are :math:`o_c = -\tfrac{\gamma}{r} \lVert \bar Q_c - Q \rVert^2`, with α, β and γ learned from 0, 0
and 1.  In training the loss gains :math:`\nu \sum_{c < c'} \lVert \hat S_c \hat S_{c'}^\top \rVert^2`, which keeps the
classes apart, with :math:`\hat S` the support positions of a task over the norm of them all.

What differs from the paper: λ lacks the 1e-6 that its code adds, and its pre-training is not here, though the network
can be one that was trained beforehand.  The norm of :math:`\hat S` is that of the authors' code; the paper makes each
position have length 1, with which ν = 0.03 would swamp the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.episode import Episodes, SupportSet
from ..errors import InputError
from ..functional import Statistics, full_precision
from ..settings import NonNegative
from .contract import Options
from .feature_method import FeatureMethod

__all__ = ["FRN", "AdaptedFRN", "FRNOptions"]


@dataclass(frozen=True, kw_only=True)
class FRNOptions(Options):
    """Options of FRN.

    Attributes:
        layer: name of the layer whose output ``(N, d, *)`` is the feature map; if empty the last one that has channels
            and more than one position.
        by_dimension: whether maps are divided by √d, as the authors do for ResNet-12 and not for Conv4.
        separation: ν, the weight of the loss that keeps the classes apart.
    """

    layer: str = ""
    by_dimension: bool = False
    separation: NonNegative = 0.03


class AdaptedFRN(NamedTuple):
    r"""What adaptation gives T tasks.

    Attributes:
        errors: :math:`\rho H_c - I`, which takes a position to its error, ``(T, C, d, d)``.
        statistics: of the support sets.
        separation: the loss that keeps the classes apart, ``(T,)``.
    """

    errors: Tensor
    statistics: Statistics
    separation: Tensor


class FRN(FeatureMethod):
    """FRN for T tasks at once.

    Args:
        model: the network; layers after the feature map are not used.
        options: see :class:`FRNOptions`.

    Raises:
        InputError: if the network has no layer of that name; when it adapts, if none makes feature maps.
    """

    Options = FRNOptions
    label = "FRN"

    def __init__(self, model: nn.Module, options: FRNOptions = FRNOptions()) -> None:  # noqa: B008 - frozen
        super().__init__(model)
        self.options = options
        self.layer = options.layer
        names = [name for name, _ in self.network.module.named_modules() if name]
        if self.layer and self.layer not in names:
            raise InputError(f"layer={self.layer!r} is no layer of the network; choose among {', '.join(names)}")
        self.alpha, self.beta = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.gamma = nn.Parameter(torch.ones(()))

    def adapt(self, support: SupportSet) -> AdaptedFRN:
        """The rebuilding of each class, in closed form."""
        positions, statistics = self._positions(support.x, None)
        one_hot = support.one_hot(positions.dtype)
        with full_precision(positions.device):
            identity = torch.eye(positions.shape[-1], dtype=positions.dtype, device=positions.device)
            of_samples = positions.transpose(-1, -2) @ positions
            of_classes = torch.einsum("tnc,tnde->tcde", one_hot, of_samples)  # SᵀS
            rows = one_hot.sum(1) * positions.shape[2]  # kr
            penalty = (rows / positions.shape[-1] * self.alpha.exp())[..., None, None]
            rebuilt = torch.linalg.solve(of_classes + penalty * identity, of_classes)
            return AdaptedFRN(self.beta.exp() * rebuilt - identity, statistics, _overlap(of_classes))

    def predict(self, adapted: AdaptedFRN, query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``: minus the mean squared error of the rebuilt positions, times γ."""
        positions, _ = self._positions(query, adapted.statistics)
        with full_precision(positions.device):
            errors = positions.flatten(1, 2).unsqueeze(1) @ adapted.errors  # (T, C, Q r, d)
            squared = errors.square().sum(-1).unflatten(-1, positions.shape[1:3]).mean(-1)
            return -self.gamma * squared.transpose(-1, -2)

    def loss(self, adapted: AdaptedFRN, outputs: Tensor, episodes: Episodes) -> Tensor:
        """The episodes' loss and, in training, the one that keeps the classes apart."""
        loss = episodes.loss(outputs, episodes.query_labels)
        return loss + self.options.separation * adapted.separation if self.training else loss

    def _positions(self, x: Tensor, statistics: Statistics | None) -> tuple[Tensor, Statistics]:
        """Positions ``(T, N, r, d)`` of the feature maps, and the statistics of the pass."""
        if not self.layer:
            self.layer = self._last_map(x)
        seen = self.network(x, None, statistics, layers=(self.layer,))
        positions = seen.layers[self.layer].flatten(3).transpose(-1, -2).to(seen.features.dtype)
        return positions / positions.shape[-1] ** 0.5 if self.options.by_dimension else positions, seen.statistics

    @torch.no_grad()
    def _last_map(self, x: Tensor) -> str:
        """Name of the last layer whose output has channels and more than one position."""
        names = [name for name, _ in self.network.module.named_modules() if name]
        seen = self.network(x[:1], layers=names, track=False)
        maps = [name for name, y in seen.layers.items() if y.dim() > 3 and y.shape[3:].numel() > 1]
        if not maps:
            raise InputError(
                "expected a network with a layer whose output (N, channels, *) has several positions, got none; "
                "try a convolutional backbone, or the option layer=NAME"
            )
        return maps[-1]


def _overlap(of_classes: Tensor) -> Tensor:
    """Σ over pairs of classes of ‖Ŝ Ŝ'ᵀ‖² = ⟨ŜᵀŜ, Ŝ'ᵀŜ'⟩, from SᵀS ``(T, C, d, d)``, shape ``(T,)``."""
    total = of_classes.diagonal(dim1=-2, dim2=-1).sum((1, 2))  # the squared norm of all positions
    flat = of_classes.flatten(2)
    pairs = (flat.sum(1).square().sum(-1) - flat.square().sum((1, 2))) / 2
    return pairs / total.square()
