r"""FEAT, Ye et al. 2020, "Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions",
https://arxiv.org/abs/1812.03664.

The class means :math:`\mu` of a task attend to each other before queries are compared with them:

.. math:: p = f(\mu), \qquad o_c(x) = -\lVert h(x) - p_c \rVert^2 / T, \qquad
          f(z) = \operatorname{LN}\bigl(z + A\,\operatorname{softmax}(z Q (z K)^\top / \sqrt D)\,z V\bigr)

In training the loss gains a contrastive term: f is applied to the support samples and queries of each class by
themselves, and every sample x is to be nearest to the mean :math:`\bar f_c` of its own class,

.. math:: L = \operatorname{CE}(o, y) + \lambda\,\operatorname{CE}(-\lVert h(x) - \bar f_c \rVert^2 / T_2,\; y).

What differs from the paper: its network is trained to classify all training classes beforehand, which is for the
network that is given here, and f has ten times the learning rate of the network; here both have the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.episode import Episodes, SupportSet, cross_entropy
from ..functional import Statistics, full_precision
from ..settings import NonNegative, Positive, Share
from .contract import Options
from .feature_method import FeatureMethod
from .taskwise import class_means

__all__ = ["FEAT", "AdaptedFEAT", "FEATOptions", "SetToSet"]


@dataclass(frozen=True, kw_only=True)
class FEATOptions(Options):
    """Options of FEAT; the defaults are the authors' for one shot, 64 features.

    Attributes:
        temperature: T, by which squared distances are divided; the authors' for five shots is 32.
        contrast: λ, the weight of the contrastive loss; 0.1 for five shots.
        contrast_temperature: T₂ of that loss; 64 for five shots.
        dropout: on what attention adds, while training.
        attention_dropout: on the attention weights, while training.
    """

    temperature: Positive = 64.0
    contrast: NonNegative = 1.0
    contrast_temperature: Positive = 16.0
    dropout: Share = 0.5
    attention_dropout: Share = 0.1


class SetToSet(nn.Module):
    """f, one head of attention with a residual connection and layer normalization.

    Shape: ``(*, N, D)`` to ``(*, N, D)``; with a mask ``(*, N, N)``, sample i sees the samples j where it is true.
    """

    def __init__(self, features: int, *, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(features, features, bias=False) for _ in range(3))
        for linear in (self.query, self.key, self.value):
            nn.init.normal_(linear.weight, std=features**-0.5)
        self.out = nn.Linear(features, features)
        nn.init.xavier_normal_(self.out.weight)
        self.norm = nn.LayerNorm(features)
        self.dropout, self.attention_dropout = nn.Dropout(dropout), nn.Dropout(attention_dropout)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """The samples, each changed by what it reads of the others."""
        scores = self.query(z) @ self.key(z).transpose(-1, -2) / z.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        mixed = self.attention_dropout(scores.softmax(-1)) @ self.value(z)
        return self.norm(z + self.dropout(self.out(mixed)))


@dataclass
class AdaptedFEAT:
    """Prototypes of T tasks after attention, and what the contrastive loss needs.

    Attributes:
        prototypes: ``(T, C, D)``.
        statistics: of the support sets.
        support: features ``(T, N, D)``.
        labels: their classes ``(T, N)``.
        query: features ``(T, Q, D)`` of the queries, once they were predicted in training.
    """

    prototypes: Tensor
    statistics: Statistics
    support: Tensor
    labels: Tensor
    query: Tensor | None = None


class FEAT(FeatureMethod):
    """FEAT for T tasks at once.

    Args:
        model: the network; of its last layer only the inputs matter.
        options: see :class:`FEATOptions`.
    """

    Options = FEATOptions
    label = "FEAT"
    reads_features_only = True

    def __init__(self, model: nn.Module, options: FEATOptions = FEATOptions()) -> None:  # noqa: B008 - frozen
        super().__init__(model)
        self.options = options
        self.set_to_set = SetToSet(self.features, dropout=options.dropout, attention_dropout=options.attention_dropout)

    def adapt(self, support: SupportSet) -> AdaptedFEAT:
        """Class means that have attended to each other."""
        seen, one_hot = self.read(support)
        with full_precision(seen.features.device):
            means, _ = class_means(seen.features, one_hot)
            prototypes = self.set_to_set(means)
        return AdaptedFEAT(prototypes, seen.statistics, seen.features, _classes(support.y))

    def predict(self, adapted: AdaptedFEAT, query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``: minus the squared distances, divided by T."""
        features = self.read_queries(query, adapted.statistics)
        if self.training:
            adapted.query = features
        with full_precision(features.device):
            return -_squared_distances(features, adapted.prototypes) / self.options.temperature

    def loss(self, adapted: AdaptedFEAT, outputs: Tensor, episodes: Episodes) -> Tensor:
        """The episodes' loss and, in training, the contrastive loss."""
        loss = episodes.loss(outputs, episodes.query_labels)
        if not self.training or not self.options.contrast or adapted.query is None:
            return loss
        features = torch.cat([adapted.support, adapted.query], 1)
        labels = torch.cat([adapted.labels, _classes(episodes.query_labels)], 1)
        with full_precision(features.device):
            changed = self.set_to_set(features, labels.unsqueeze(-1) == labels.unsqueeze(-2))
            centres, _ = class_means(changed, F.one_hot(labels, adapted.prototypes.shape[1]).to(changed))
            logits = -_squared_distances(features, centres) / self.options.contrast_temperature
        return loss + self.options.contrast * cross_entropy(logits, labels)


def _squared_distances(samples: Tensor, centres: Tensor) -> Tensor:
    """Between samples ``(T, N, D)`` and centres ``(T, C, D)``, ``(T, N, C)``."""
    return (samples.unsqueeze(-2) - centres.unsqueeze(-3)).square().sum(-1)


def _classes(labels: Tensor) -> Tensor:
    """Classes ``(T, N)``, of labels that may be shares of several classes ``(T, N, C)`` the largest."""
    return labels.argmax(-1) if labels.is_floating_point() else labels
