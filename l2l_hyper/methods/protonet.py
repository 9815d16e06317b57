r"""Prototypical Networks, Snell et al. 2017, https://arxiv.org/abs/1703.05175.

A query is classified by its squared Euclidean distances to the mean features of the classes,

.. math:: o_c(x) = -\tau\,\lVert h(x) - \mu_c \rVert^2, \qquad \mu_c = \operatorname{mean}_{y_n = c} h(x_n),

which is a linear layer, :math:`w_c = 2\tau\mu_c` and :math:`b_c = -\tau\lVert\mu_c\rVert^2`, less
:math:`\tau\lVert h(x)\rVert^2`, which all classes share.  The paper has :math:`\tau = 1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..data.episode import SupportSet
from ..functional import full_precision, in_float32
from .base_learners import BaseLearner, Cosine, Prototype
from .contract import Method, Options
from .taskwise import Adapted, TaskwiseNetwork, linear_map

__all__ = ["ProtoNetOptions", "ProtoNet"]


@dataclass(frozen=True, kw_only=True)
class ProtoNetOptions(Options):
    """Options of a Prototypical Network.

    Attributes:
        temperature: "fixed" for τ = 1, as in the paper, or "learned".
        distance: "euclidean", as in the paper, or "cosine" of features about a learned centre, with a learned scale.
        linear_map: whether prototypes are read through a learned linear map, which begins as the identity.
        implementation: "batched" for this file, or "learn2learn" for its class, one task after the other.
    """

    temperature: Literal["fixed", "learned"] = "fixed"
    distance: Literal["euclidean", "cosine"] = "euclidean"
    linear_map: bool = False
    implementation: Literal["batched", "learn2learn"] = "batched"


class ProtoNet(Method):
    """A Prototypical Network for T tasks at once.

    Args:
        model: the network; of its last layer only the inputs matter.
        options: see :class:`ProtoNetOptions`.
    """

    Options = ProtoNetOptions
    label = "ProtoNet"
    reads_features_only = True
    needs_every_class = True

    def __init__(self, model: nn.Module, options: ProtoNetOptions = ProtoNetOptions()) -> None:  # noqa: B008 - frozen
        super().__init__()
        self.network = TaskwiseNetwork(model)
        self.network.release_head()
        features = self.network.head.in_features
        if options.distance == "cosine":
            self.network.read_unit_length()
            self.prototype: BaseLearner = Cosine(features, published=True)
        else:
            self.prototype = Prototype(features, published=True).requires_grad_(options.temperature == "learned")
        self.linear_map = linear_map(features) if options.linear_map else None

    def adapt(self, support: SupportSet) -> Adapted:
        """One prototype per class."""
        seen = self.network(support.x)
        with full_precision(seen.features.device):
            features = in_float32(seen.features)
            mapped = features if self.linear_map is None else self.linear_map(features)
            layer = self.prototype(mapped, support.one_hot(features.dtype))
        return Adapted(self.network.head_weights(*layer), seen.statistics)

    def predict(self, adapted: Adapted, query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``: minus the squared distances, up to a constant per query."""
        return self.network(query, adapted.weights, adapted.statistics).outputs
