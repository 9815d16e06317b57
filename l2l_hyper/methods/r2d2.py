r"""R2-D2, Bertinetto et al. 2019, "Meta-learning with differentiable closed-form solvers", https://arxiv.org/abs/1805.08136.

The last layer is ridge regression from the features X of the N support samples, with a constant one appended, to their
one-hot labels Y, through whose closed form the loss of the queries is propagated back to the features:

.. math:: W = (X^\top X + N\lambda I)^{-1} X^\top Y = X^\top (X X^\top + N\lambda I)^{-1} Y, \qquad o(x) = \alpha\,x W

The penalty :math:`\lambda` and the scale :math:`\alpha` are learned with the network.

What differs from the paper: its bias :math:`\beta`, one number that is added to all outputs, is left out, since the
softmax does not see it.  λ and α are learned as logarithms, so that they stay positive.  The paper writes λ for Nλ; its
code divides X and Y by :math:`\sqrt N`, as is done here, so that one λ fits any number of shots.  The code begins at
λ = 50 and α = 1e-4, for 72,576 features; the defaults here are for some hundred.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.episode import SupportSet
from ..functional import full_precision
from ..settings import Positive
from .contract import Options
from .feature_method import FeatureMethod
from .taskwise import Adapted

__all__ = ["R2D2", "R2D2Options", "ridge"]


@dataclass(frozen=True, kw_only=True)
class R2D2Options(Options):
    """Options of R2-D2.

    Attributes:
        penalty: λ at the start.
        scale: α at the start.
        learn_penalty: whether λ is learned, as in the paper; its code leaves λ fixed by default.
    """

    penalty: Positive = 1.0
    scale: Positive = 10.0
    learn_penalty: bool = True


class R2D2(FeatureMethod):
    """R2-D2 for T tasks at once, in classification and, with α = 1, in regression.

    Args:
        model: the network; of its last layer only the inputs matter.
        options: see :class:`R2D2Options`.
    """

    Options = R2D2Options
    label = "R2-D2"
    reads_features_only = True

    def __init__(self, model: nn.Module, options: R2D2Options = R2D2Options()) -> None:  # noqa: B008 - frozen
        super().__init__(model)
        self.log_penalty = nn.Parameter(torch.tensor(math.log(options.penalty)), options.learn_penalty)
        self.log_scale = nn.Parameter(torch.tensor(math.log(options.scale)))

    def adapt(self, support: SupportSet) -> Adapted:
        """The ridge regression of each task."""
        if support.ways is None:
            seen = self.network(support.x)
            targets, scale = support.y.flatten(2).to(seen.features), torch.ones_like(self.log_scale)
        else:
            seen, targets = self.read(support)
            scale = self.log_scale.exp()
        with full_precision(seen.features.device):
            ones = torch.ones_like(seen.features[..., :1])
            solution = ridge(torch.cat([seen.features, ones], -1), targets, self.log_penalty.exp())
            rows = scale * solution.transpose(-1, -2)
        return Adapted(self.network.head_weights(rows[..., :-1], rows[..., -1]), seen.statistics)

    def predict(self, adapted: Adapted, query: Tensor) -> Tensor:
        """Outputs ``(T, Q, C)``."""
        return self.network(query, adapted.weights, adapted.statistics).outputs


def ridge(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """Ridge regression ``(*, D, C)`` from ``x (*, N, D)`` to ``y (*, N, C)``, by the smaller of the two systems."""
    samples, features = x.shape[-2:]
    transposed = x.transpose(-1, -2) / samples
    identity = torch.eye(min(samples, features), dtype=x.dtype, device=x.device)
    if samples <= features:
        return transposed @ torch.linalg.solve(x @ transposed + penalty * identity, y)
    return torch.linalg.solve(transposed @ x + penalty * identity, transposed @ y)
