r"""ANIL, Raghu et al. 2020, "Rapid Learning or Feature Reuse?", https://arxiv.org/abs/1909.09157.

MAML whose inner loop changes the last layer alone: with features :math:`h(x)` of a body that all tasks share,

.. math:: (w, b)_{i+1} = (w, b)_i - \alpha\,\nabla_{(w, b)} L_{\text{support}}(w_i\,h(x) + b_i).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from ..data.episode import SupportSet
from ..functional import full_precision
from ..settings import Depth, Positive
from .contract import Method, Options
from .inner_loop import descend, leaves
from .taskwise import Adapted, TaskwiseNetwork

__all__ = ["ANIL", "ANILOptions"]


@dataclass(frozen=True, kw_only=True)
class ANILOptions(Options):
    """Options of ANIL.

    Attributes:
        inner_lr: inner learning rate α.
        steps: gradient steps per task.
        implementation: "batched" for this file, or "learn2learn" for its classes, one task after the other.
    """

    inner_lr: Positive = 0.4
    steps: Depth = 5
    implementation: Literal["batched", "learn2learn"] = "batched"


class ANIL(Method):
    """ANIL for T tasks at once.

    Args:
        model: the network; its last layer must make the outputs.
        options: see :class:`ANILOptions`.
    """

    Options = ANILOptions
    label = "ANIL"
    reads_features_only = True

    def __init__(self, model: nn.Module, options: ANILOptions = ANILOptions()) -> None:  # noqa: B008 - frozen
        super().__init__()
        self.network = TaskwiseNetwork(model)
        self.options = options

    def adapt(self, support: SupportSet) -> Adapted:
        """The last layer after the inner loop; the features are computed once."""
        self.network.check_ways(support)
        differentiable = torch.is_grad_enabled()
        seen = self.network(support.x)
        names = self.network.head_names
        with torch.enable_grad(), full_precision(seen.features.device):
            weights = self.network.own(names, len(support))
            for _ in range(self.options.steps):
                if not differentiable:
                    weights = leaves(weights)
                logits = vmap(F.linear)(seen.features, *(weights[name] for name in names))
                loss = support.loss(logits, support.rows).sum()
                weights = descend(loss, weights, self.options.inner_lr, second_order=differentiable)
        adapted = Adapted(weights, seen.statistics)
        return adapted if differentiable else adapted.detached()

    def predict(self, adapted: Adapted, query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``."""
        return self.network(query, adapted.weights, adapted.statistics).outputs
