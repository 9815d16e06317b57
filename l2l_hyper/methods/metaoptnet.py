r"""MetaOptNet-SVM, Lee et al. 2019, "Meta-Learning with Differentiable Convex Optimization",
https://arxiv.org/abs/1904.03758.

The last layer is the support vector machine of Crammer and Singer 2001 on the features of the support set, which is
solved in its dual, and through whose solution the loss of the queries is propagated back to the features:

.. math:: \min_\alpha\; \tfrac12 \sum_c \Bigl\lVert \sum_n \alpha_{nc} h(x_n) \Bigr\rVert^2
          + \tfrac12 \lVert\alpha\rVert^2 - \sum_n \alpha_{n y_n}
          \quad\text{with}\quad \alpha_{nc} \le C\,[c = y_n],\;\; \sum_c \alpha_{nc} = 0,
          \qquad o_c(x) = \gamma \sum_n \alpha_{nc}\, h(x_n) \cdot h(x).

As in the authors' code, C is 0.1, the term :math:`\tfrac12 \lVert\alpha\rVert^2` makes the matrix of the problem
positive definite, the scale :math:`\gamma` is learned from 1, and qpth (Amos and Kolter 2017,
https://arxiv.org/abs/1703.00443) solves it, in double precision.

What differs from the paper: γ is learned as a logarithm, so that it stays positive.  The paper's recipe (ResNet-12 with
DropBlock, label smoothing, 15 shots in training) is up to the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.episode import SupportSet
from ..functional import full_precision, in_float32
from ..settings import Positive
from .contract import Options
from .feature_method import FeatureMethod
from .taskwise import Adapted

__all__ = ["MetaOptNet", "MetaOptNetOptions"]


@dataclass(frozen=True, kw_only=True)
class MetaOptNetOptions(Options):
    """Options of MetaOptNet.

    Attributes:
        regularization: C, the most that a support sample can weigh in the vector of its class.
    """

    regularization: Positive = 0.1


class MetaOptNet(FeatureMethod):
    """MetaOptNet-SVM for T tasks at once.

    Args:
        model: the network; of its last layer only the inputs matter.
        options: see :class:`MetaOptNetOptions`.
    """

    Options = MetaOptNetOptions
    label = "MetaOptNet"
    reads_features_only = True

    def __init__(self, model: nn.Module, options: MetaOptNetOptions = MetaOptNetOptions()) -> None:  # noqa: B008
        super().__init__(model)
        self.options = options
        self.log_scale = nn.Parameter(torch.zeros(()))

    def adapt(self, support: SupportSet) -> Adapted:
        """The support vector machine of each task."""
        seen, one_hot = self.read(support)
        with full_precision(seen.features.device):
            features = in_float32(seen.features)
            alpha = support_vectors(features.double(), one_hot.double(), self.options.regularization)
            rows = self.log_scale.exp() * alpha.to(features).mT @ features
        return Adapted(self.network.head_weights(rows, torch.zeros_like(rows[..., 0])), seen.statistics)

    def predict(self, adapted: Adapted, query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``."""
        return self.network(query, adapted.weights, adapted.statistics).outputs


def support_vectors(x: Tensor, one_hot: Tensor, regularization: float) -> Tensor:
    """α ``(T, N, C)``, what each sample weighs in the vector of each class; differentiable.

    Args:
        x: features ``(T, N, D)``.
        one_hot: classes ``(T, N, C)``.
        regularization: C.
    """
    from qpth.qp import QPFunction  # which takes a second to load

    samples, ways = one_hot.shape[-2:]
    of_classes, of_all = torch.eye(ways).to(x), torch.eye(samples * ways).to(x)
    matrix = torch.stack([torch.kron(gram, of_classes) for gram in x @ x.mT]) + of_all
    sums = torch.kron(torch.eye(samples), torch.ones(1, ways)).to(x)
    targets = one_hot.flatten(1)
    solve = QPFunction(verbose=False, check_Q_spd=False)
    alpha: Tensor = solve(matrix, -targets, of_all, regularization * targets, sums, x.new_zeros(samples))
    return alpha.view_as(one_hot)
