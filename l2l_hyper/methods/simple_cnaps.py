r"""Simple CNAPs, Bateni et al. 2020, "Improved Few-Shot Visual Classification", https://arxiv.org/abs/1912.03432.

A query is classified by its squared Mahalanobis distances to the class means, under a covariance of each class that is
estimated from its K samples, from the whole support set and from the identity,

.. math:: o_c(x) = -\tau\,(h(x) - \mu_c)^\top Q_c^{-1} (h(x) - \mu_c), \qquad
          Q_c = \lambda_c \Sigma_c + (1 - \lambda_c)\,\Sigma + I, \qquad \lambda_c = \frac{K}{K + 1},

with unbiased estimates Σ_c of the class and Σ of all support samples about their one mean.  Beneath, a hypernetwork
that reads the support set may scale and shift the channels of the network for each task, as in CNAPs of Requeima et al.
2019, https://arxiv.org/abs/1906.07697.  The paper has τ = 1.

What differs from the paper: the network is trained along, where theirs is a ResNet-18 trained on ImageNet and frozen;
the hypernetwork is :mod:`l2l_hyper.methods.modulation`, attention over the features of the network itself, where theirs
is an image encoder of its own with a mean, and off by default.  Of a class with one sample Σ_c is zero; the authors'
code there adds the variance over the sample's features to every entry of the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..data.episode import SupportSet
from ..functional import Statistics, full_precision
from ..hypernet import Target
from ..settings import Count, Depth, Share
from .contract import Options
from .feature_method import FeatureMethod
from .modulation import Modulation
from .taskwise import Pass, class_means

__all__ = ["AdaptedSimpleCNAPs", "SimpleCNAPs", "SimpleCNAPsOptions", "mahalanobis_terms"]


@dataclass(frozen=True, kw_only=True)
class SimpleCNAPsOptions(Options):
    """Options of Simple CNAPs.

    Attributes:
        temperature: "fixed" for τ = 1, as in the paper, or "learned".
        generate: shell patterns, separated by commas, of the weights that the hypernetwork scales and shifts for each
            task, such as those of the normalization layers; none if empty.
        width: width of its attention.
        blocks: blocks of attention.
        heads: attention heads.
        dropout: in the blocks, while training.
    """

    temperature: Literal["fixed", "learned"] = "fixed"
    generate: str = ""
    width: Count = 128
    blocks: Depth = 2
    heads: Count = 4
    dropout: Share = 0.0


class AdaptedSimpleCNAPs(NamedTuple):
    r"""What adaptation gives T tasks.

    Attributes:
        means: of the classes, ``(T, C, D)``.
        factor: B ``(T, C, 2N, D)`` with :math:`Q_c^{-1} = I - B^\top B`.
        weights: each task's own, by name.
        statistics: of the support sets.
    """

    means: Tensor
    factor: Tensor
    weights: dict[str, Tensor]
    statistics: Statistics


class SimpleCNAPs(FeatureMethod):
    """Simple CNAPs for T tasks at once.

    Args:
        model: the network; of its last layer only the inputs matter.
        options: see :class:`SimpleCNAPsOptions`.

    Raises:
        InputError: if a pattern of ``generate`` matches no weight.
    """

    Options = SimpleCNAPsOptions
    label = "Simple CNAPs"

    def __init__(self, model: nn.Module, options: SimpleCNAPsOptions = SimpleCNAPsOptions()) -> None:  # noqa: B008
        super().__init__(model)
        self.log_temperature = nn.Parameter(torch.zeros(()), options.temperature == "learned")
        patterns = [pattern for pattern in options.generate.split(",") if pattern]
        shapes = Target.of(self.network.module, patterns).shapes if patterns else {}
        self.body = list(shapes)
        self.adapts_features = bool(shapes)
        attention: dict[str, Any] = {"width": options.width, "blocks": options.blocks, "heads": options.heads}
        self.modulation = (
            Modulation(self.features, shapes, "feature-wise", **attention, dropout=options.dropout) if shapes else None
        )

    def adapt(self, support: SupportSet) -> AdaptedSimpleCNAPs:
        """Means and covariances of the classes, from features that may be the task's own."""
        seen, weights = self._modulated(support.x)
        one_hot = support.one_hot(seen.features.dtype)
        with full_precision(seen.features.device):
            means, factor = mahalanobis_terms(seen.features, one_hot)
        return AdaptedSimpleCNAPs(means, factor, weights, seen.statistics)

    def predict(self, adapted: AdaptedSimpleCNAPs, query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``: minus the squared Mahalanobis distances, times τ."""
        features = self.network(query, adapted.weights, adapted.statistics).features
        with full_precision(features.device):
            differences = features.unsqueeze(1) - adapted.means.unsqueeze(2)  # (T, C, Q, D)
            along = differences @ adapted.factor.transpose(-1, -2)
            distances = differences.square().sum(-1) - along.square().sum(-1)
            return -self.log_temperature.exp() * distances.transpose(-1, -2)

    def _modulated(self, x: Tensor) -> tuple[Pass, dict[str, Tensor]]:
        """The pass of the support set under the task's own weights, and these."""
        if self.modulation is None:
            return self.network(x), {}
        seen = self.network(x, track=False)
        own = self.network.own(self.body, len(x))
        with full_precision(seen.features.device):
            changes = self.modulation(seen.features, own)
        weights = {name: own[name] + change for name, change in changes.items()}
        return self.network(x, weights), weights


def mahalanobis_terms(features: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
    r"""Class means ``(T, C, D)`` and a factor B ``(T, C, 2N, D)`` of the inverse covariances, :math:`I - B^\top B`.

    :math:`Q = I + A^\top A`, where the rows of A are the 2N weighted differences of the support samples from the mean
    of the class and from the mean of all, so that :math:`Q^{-1} = I - A^\top (I + A A^\top)^{-1} A`: no matrix is
    larger than the support set, however many features there are.

    Args:
        features: ``(T, N, D)``.
        one_hot: classes ``(T, N, C)``.
    """
    means, shots = class_means(features, one_hot)  # (T, C, D), (T, C, 1)
    share = shots / (shots + 1)  # λ
    samples = features.shape[1]
    of_class = one_hot.transpose(1, 2) * (share / (shots - 1).clamp_min(1))  # (T, C, N)
    of_task = ((1 - share) / max(samples - 1, 1)).expand_as(of_class)
    from_class = features.unsqueeze(1) - means.unsqueeze(2)  # (T, C, N, D)
    from_all = (features - features.mean(1, keepdim=True)).unsqueeze(1).expand_as(from_class)
    # Square roots of the weights of samples of other classes, which are zero, have no gradient that is needed.
    roots = torch.cat([of_class, of_task], -1).detach().sqrt().unsqueeze(-1)
    rows = roots * torch.cat([from_class, from_all], 2)  # A
    identity = torch.eye(2 * samples, dtype=rows.dtype, device=rows.device)
    lower = torch.linalg.cholesky(identity + rows @ rows.transpose(-1, -2))
    return means, torch.linalg.solve_triangular(lower, rows, upper=False)
