r"""SimpleShot, Wang et al. 2019, "Revisiting Nearest-Neighbor Classification for Few-Shot Learning",
https://arxiv.org/abs/1911.04623.

The nearest class mean of features that are centred and then have length 1 ("CL2N"): with m the mean feature of the
training classes,

.. math:: \hat h(x) = \frac{h(x) - m}{\lVert h(x) - m \rVert}, \qquad
          o_c(x) = -\tau\,\lVert \hat h(x) - \mu_c \rVert^2, \qquad
          \mu_c = \operatorname{mean}_{y_n = c} \hat h(x_n).

As in the paper, m takes part in evaluation only; training sees :math:`h / \lVert h \rVert`.

What differs from the paper: it trains the network to classify all training classes, with a linear layer and no
episodes.  Here a network that is trained so beforehand can be given, and training by episodes takes o(x) for logits,
with a learned scale :math:`\tau`; m is a running mean over the support samples of meta-training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.episode import SupportSet
from ..functional import full_precision
from ..functional.norm import moving_averages
from ..settings import Positive
from .contract import Options
from .feature_method import FeatureMethod
from .taskwise import class_means

__all__ = ["SimpleShot", "SimpleShotOptions"]


@dataclass(frozen=True, kw_only=True)
class SimpleShotOptions(Options):
    """Options of SimpleShot.

    Attributes:
        centre: whether m is subtracted ("CL2N"), or features are only made to have length 1 ("L2N").
        scale: τ at the start.
        momentum: weight of a new batch of support sets in m, once there were 1 / momentum of them.
    """

    centre: bool = True
    scale: Positive = 10.0
    momentum: Annotated[float, Gt(0), Le(1)] = 0.01


class SimpleShot(FeatureMethod):
    """SimpleShot for T tasks at once.

    Args:
        model: the network; of its last layer only the inputs matter.
        options: see :class:`SimpleShotOptions`.
    """

    Options = SimpleShotOptions
    label = "SimpleShot"
    reads_features_only = True
    mean: Tensor
    batches: Tensor

    def __init__(self, model: nn.Module, options: SimpleShotOptions = SimpleShotOptions()) -> None:  # noqa: B008
        super().__init__(model)
        self.options = options
        self.log_scale = nn.Parameter(torch.tensor(math.log(options.scale)))
        self.register_buffer("mean", torch.zeros(self.features))
        self.register_buffer("batches", torch.tensor(0))

    def adapt(self, support: SupportSet) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Class means ``(T, C, D)`` of the centred, normalized features, and statistics for the queries."""
        seen, one_hot = self.read(support)
        if self.training:
            self._update_mean(seen.features)
        with full_precision(seen.features.device):
            means, _ = class_means(self._normalized(seen.features), one_hot)
        return means, seen.statistics

    def predict(self, adapted: tuple[Tensor, dict[str, tuple[Tensor, Tensor]]], query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``: minus the squared distances, times τ."""
        means, statistics = adapted
        features = self.read_queries(query, statistics)
        with full_precision(features.device):
            differences = self._normalized(features).unsqueeze(-2) - means.unsqueeze(-3)
            return -self.log_scale.exp() * differences.square().sum(-1)

    def _normalized(self, features: Tensor) -> Tensor:
        centred = self.options.centre and not self.training
        return F.normalize(features - self.mean if centred else features, dim=-1)

    @torch.no_grad()
    def _update_mean(self, features: Tensor) -> None:
        with moving_averages:
            self.batches += 1
            weight = (1 / self.batches).clamp_min(self.options.momentum).to(self.mean)
            self.mean.lerp_(features.flatten(0, -2).mean(0).to(self.mean), weight)
