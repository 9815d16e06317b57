r"""Soft k-means, Ren et al. 2018, "Meta-Learning for Semi-Supervised Few-Shot Classification",
https://arxiv.org/abs/1803.00676.

A Prototypical Network whose prototypes are refined by samples without labels, each of which counts for class c by how
probable the class is for it under the prototypes of before:

.. math:: \tilde\mu_c = \frac{\sum_n y_{nc}\,h(x_n) + \sum_q p_{qc}\,h(x_q)}{\sum_n y_{nc} + \sum_q p_{qc}}, \qquad
          p_{qc} = \operatorname{softmax}_c o_c(x_q), \qquad o_c(x) = -\tau\,\lVert h(x) - \mu_c \rVert^2.

It is transductive: the samples without labels are the queries of the episode, which are seen together.  How many
queries there are of each class then matters to the outputs.

What differs from the paper: there the samples without labels are a set of their own beside the queries, τ is 1, and a
variant of it masks those of other classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..data.episode import SupportSet
from ..functional import Statistics, full_precision, in_float32
from ..settings import Depth
from .base_learners import BaseLearner, Cosine, Prototype
from .contract import Options
from .feature_method import FeatureMethod

__all__ = ["AdaptedSoftKMeans", "SoftKMeans", "SoftKMeansOptions"]


@dataclass(frozen=True, kw_only=True)
class SoftKMeansOptions(Options):
    """Options of soft k-means.

    Attributes:
        steps: how often the prototypes are refined.
        temperature: "fixed" for τ = 1, as in the paper, or "learned".
        distance: "euclidean", as in the paper, or "cosine" of features about a learned centre, with a learned scale.
    """

    steps: Depth = 1
    temperature: Literal["fixed", "learned"] = "fixed"
    distance: Literal["euclidean", "cosine"] = "euclidean"


class AdaptedSoftKMeans(NamedTuple):
    """What adaptation gives T tasks: features ``(T, N, D)``, one-hot classes ``(T, N, C)``, and statistics."""

    features: Tensor
    one_hot: Tensor
    statistics: Statistics


class SoftKMeans(FeatureMethod):
    """Soft k-means for T tasks at once.

    Args:
        model: the network; of its last layer only the inputs matter.
        options: see :class:`SoftKMeansOptions`.
    """

    Options = SoftKMeansOptions
    label = "Soft k-means, transductive"
    transductive = True

    def __init__(self, model: nn.Module, options: SoftKMeansOptions = SoftKMeansOptions()) -> None:  # noqa: B008
        super().__init__(model)
        self.steps = options.steps
        if options.distance == "cosine":
            self.network.read_unit_length()
            self.prototype: BaseLearner = Cosine(self.features, published=True)
        else:
            self.prototype = Prototype(self.features, published=True).requires_grad_(options.temperature == "learned")

    def adapt(self, support: SupportSet) -> AdaptedSoftKMeans:
        """The features of the support set, which the prototypes of each batch of queries are made of."""
        seen, one_hot = self.read(support)
        features = in_float32(seen.features)
        return AdaptedSoftKMeans(features, one_hot.to(features), seen.statistics)

    def predict(self, adapted: AdaptedSoftKMeans, query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``, up to a constant per query; all Q queries refine the prototypes."""
        features, one_hot, statistics = adapted
        queries = in_float32(self.read_queries(query, statistics))
        together = torch.cat([features, queries], 1)
        with full_precision(queries.device):
            outputs = self._outputs(queries, features, one_hot)
            for _ in range(self.steps):
                outputs = self._outputs(queries, together, torch.cat([one_hot, outputs.softmax(-1)], 1))
        return outputs

    def _outputs(self, queries: Tensor, features: Tensor, shares: Tensor) -> Tensor:
        weight, bias, _ = self.prototype(features, shares)
        assert bias is not None
        return torch.baddbmm(bias.unsqueeze(1), queries, weight.mT)
