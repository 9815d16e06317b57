r"""HyperAdapter that reads the queries too, after soft k-means, Ren et al. 2018, https://arxiv.org/abs/1803.00676.

HyperAdapter generates the rows :math:`w_c = \tau_c u_c`, :math:`\lVert u_c \rVert = 1`, and the biases :math:`b_c` of a
cosine classifier from the support set.  Each of S steps turns the rows to the queries :math:`h_q` that are probably of
class c:

.. math:: r_c^{0} = u_c, \qquad
          r_c^{s} \propto \kappa_s K_c\,u_c + \sum_q p_{qc}^{s}\,\frac{M h_q}{\lVert M h_q \rVert}, \qquad
          p_{qc}^{s} = \operatorname{softmax}_c \beta_s\,o_c^{s-1}(h_q), \qquad
          o_c^{s}(h) = \tau_c\,h \cdot r_c^{s} + b_c,

with :math:`\lVert r_c^s \rVert = 1` and :math:`K_c` the number of support samples of class c; the outputs are
:math:`o^{S}`.  Learned are κ and β of each step, which begin at 1, and the linear map M,
which begins as the identity; without a residual that is soft k-means with these learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.episode import SupportSet
from ..errors import InputError
from ..functional import full_precision, in_float32
from ..settings import Depth
from .hyper_adapter import HyperAdapter, HyperAdapterOptions
from .passes import Adapted
from .taskwise import linear_map

__all__ = ["AdaptedWithShots", "TransductiveHyperAdapter", "TransductiveHyperAdapterOptions"]


@dataclass(frozen=True, kw_only=True)
class TransductiveHyperAdapterOptions(HyperAdapterOptions):
    """Options, besides those of HyperAdapter, of which base_learner must be "cosine".

    Attributes:
        refinements: S, how often the rows are turned.
    """

    refinements: Depth = 3


class AdaptedWithShots(NamedTuple):
    """What adaptation gives T tasks: the generated last layer, and the support samples of each class ``(T, C, 1)``."""

    generated: Adapted
    shots: Tensor


class TransductiveHyperAdapter(HyperAdapter):
    """HyperAdapter that reads all queries of a task together, for T tasks at once.

    Args:
        model: the network; its last layer must be an ``nn.Linear``.
        options: see :class:`TransductiveHyperAdapterOptions`.
        **given: as of :class:`~l2l_hyper.methods.hyper_adapter.HyperAdapter`.

    Raises:
        InputError: as HyperAdapter, and for another base learner than "cosine", a bank, or weights below the last layer
            that are the task's own.
    """

    Options = TransductiveHyperAdapterOptions
    label = "HyperAdapter, transductive"
    reads_features_only = True
    transductive = True

    def __init__(
        self,
        model: nn.Module,
        options: TransductiveHyperAdapterOptions = TransductiveHyperAdapterOptions(),  # noqa: B008 - frozen
        **given: Any,
    ) -> None:
        super().__init__(model, options, **given)
        if options.base_learner != "cosine" or self.body or self.distillation is not None:
            raise InputError(
                "HyperAdapter that reads queries turns the rows of a cosine classifier, got "
                f"base_learner={options.base_learner!r}, generate={options.generate!r}, bank={options.bank}; leave "
                "them out"
            )
        self.query_map = linear_map(self.network.head.in_features)
        self.log_weight = nn.Parameter(torch.zeros(options.refinements))
        self.log_sharpness = nn.Parameter(torch.zeros(options.refinements))

    def adapt(  # type: ignore[override]
        self, support: SupportSet, adapted: AdaptedWithShots | None = None
    ) -> AdaptedWithShots:
        """Generate the last layer of T tasks, see :meth:`HyperAdapter.adapt`."""
        generated = super().adapt(support, None if adapted is None else adapted.generated)
        shots = support.one_hot(self.query_map.weight.dtype).sum(1).unsqueeze(-1)
        return AdaptedWithShots(generated, shots)

    def predict(self, adapted: AdaptedWithShots, query: Tensor) -> Tensor:  # type: ignore[override]
        """Logits ``(T, Q, C)``; all Q queries turn the rows."""
        return self.predict_each([adapted], query)[0]

    def predict_each(  # type: ignore[override]
        self, adapted: Sequence[AdaptedWithShots], query: Tensor
    ) -> list[Tensor]:
        """Logits ``(T, Q, C)`` for each, of which the queries pass the network once."""
        features = in_float32(self.network(query, None, adapted[0].generated.statistics).features)
        with full_precision(features.device):
            return [self._outputs(one.generated.weights, one.shots, features) for one in adapted]

    def controlled(self, adapted: AdaptedWithShots, control: str) -> AdaptedWithShots:  # type: ignore[override]
        """The last layer with another residual, see :meth:`HyperAdapter.controlled`."""
        return adapted._replace(generated=super().controlled(adapted.generated, control))

    def penalty(self, adapted: AdaptedWithShots) -> Tensor | float:  # type: ignore[override]
        """The penalty of Δ, ``(T,)``."""
        return super().penalty(adapted.generated)

    def _outputs(self, weights: dict[str, Tensor], shots: Tensor, features: Tensor) -> Tensor:
        """Logits ``(T, Q, C)`` of queries with features ``(T, Q, D)``."""
        name, rows = next((name, own) for name, own in weights.items() if own.ndim == 3)  # beside the bias
        lengths = rows.norm(dim=-1, keepdim=True)
        own, read = shots * rows / lengths, F.normalize(self.query_map(features), dim=-1)
        outputs = self.network.last_layer(weights, features)
        for weight, sharpness in zip(self.log_weight.exp(), self.log_sharpness.exp(), strict=True):
            shares = (sharpness * outputs).softmax(-1)
            rows = lengths * F.normalize(weight * own + shares.mT @ read, dim=-1)
            outputs = self.network.last_layer({**weights, name: rows}, features)
        return outputs
