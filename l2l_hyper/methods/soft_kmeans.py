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
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.episode import SupportSet
from ..functional import Statistics, full_precision, in_float32
from ..settings import Depth
from .protonet import ProtoNet, ProtoNetOptions

__all__ = ["AdaptedSoftKMeans", "SoftKMeans", "SoftKMeansOptions"]


@dataclass(frozen=True, kw_only=True)
class SoftKMeansOptions(ProtoNetOptions):
    """Options of soft k-means, besides those of a Prototypical Network.

    Attributes:
        steps: how often the prototypes are refined.
    """

    steps: Depth = 1


class AdaptedSoftKMeans(NamedTuple):
    """What adaptation gives T tasks: features ``(T, N, D)``, one-hot classes ``(T, N, C)``, and statistics."""

    features: Tensor
    one_hot: Tensor
    statistics: Statistics


class SoftKMeans(ProtoNet):
    """Soft k-means for T tasks at once.

    Args:
        model: the network; of its last layer only the inputs matter.
        options: see :class:`SoftKMeansOptions`.
    """

    Options = SoftKMeansOptions
    label = "Soft k-means, transductive"
    reads_features_only = True
    transductive = True

    def __init__(self, model: nn.Module, options: SoftKMeansOptions = SoftKMeansOptions()) -> None:  # noqa: B008
        super().__init__(model, options)
        self.steps = options.steps

    def adapt(self, support: SupportSet) -> AdaptedSoftKMeans:  # type: ignore[override]
        """The features of the support set, which the prototypes of each batch of queries are made of."""
        seen = self.network(support.x)
        features = in_float32(seen.features)
        return AdaptedSoftKMeans(features, support.one_hot(features.dtype), seen.statistics)

    def predict(self, adapted: AdaptedSoftKMeans, query: Tensor) -> Tensor:  # type: ignore[override]
        """Logits ``(T, Q, C)``, up to a constant per query; all Q queries refine the prototypes."""
        features, one_hot, statistics = adapted
        queries = in_float32(self.network(query, None, statistics).features)
        together = torch.cat([features, queries], 1)
        with full_precision(queries.device):
            outputs = self._outputs(queries, features, one_hot)
            for _ in range(self.steps):
                outputs = self._outputs(queries, together, torch.cat([one_hot, outputs.softmax(-1)], 1))
        return outputs

    def _outputs(self, queries: Tensor, features: Tensor, shares: Tensor) -> Tensor:
        mapped = features if self.linear_map is None else self.linear_map(features)
        weight, bias, _ = self.prototype(mapped, shares)
        assert bias is not None
        return torch.baddbmm(bias.unsqueeze(1), queries, weight.mT)
