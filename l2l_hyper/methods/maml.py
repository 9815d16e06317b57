r"""MAML, Finn et al. 2017, "Model-Agnostic Meta-Learning", https://arxiv.org/abs/1703.03400.

Every weight of the network takes some gradient steps down the loss of the support set,

.. math:: W_{i+1} = W_i - \alpha\,\nabla_W L_{\text{support}}(W_i),

through which the loss of the queries is propagated back to :math:`W_0`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..data.episode import SupportSet
from ..settings import Depth, Positive
from .contract import Method, Options
from .inner_loop import descend, leaves
from .taskwise import Adapted, TaskwiseNetwork

__all__ = ["MAML", "MAMLOptions"]


@dataclass(frozen=True, kw_only=True)
class MAMLOptions(Options):
    """Options of MAML.

    Attributes:
        inner_lr: inner learning rate α.
        steps: gradient steps per task.
        first_order: whether the gradients of the inner loop are constants (FOMAML).
        normalization: the statistics that normalization layers use; those of the experiment if not given.  Under fixed
            ones ("running") nothing holds the activations while the weights change: some inner steps can diverge.
        implementation: "batched" for this file, or "learn2learn" or "higher" for theirs, one task after the other.
    """

    inner_lr: Positive = 0.1
    steps: Depth = 1
    first_order: bool = False
    normalization: Literal["support", "transductive", "running"] | None = None
    implementation: Literal["batched", "learn2learn", "higher"] = "batched"


class MAML(Method):
    """MAML for T tasks at once.

    Args:
        model: the network.
        options: see :class:`MAMLOptions`.
    """

    Options = MAMLOptions
    label = "MAML"
    adapts_features = True

    def __init__(self, model: nn.Module, options: MAMLOptions = MAMLOptions()) -> None:  # noqa: B008 - frozen
        super().__init__()
        self.network = TaskwiseNetwork(model)
        self.options = options

    def adapt(self, support: SupportSet) -> Adapted:
        """The weights after the inner loop, and what normalization layers make of the support set under them."""
        self.network.check_ways(support)
        options, differentiable = self.options, torch.is_grad_enabled()
        names = [name for name, _ in self.network.module.named_parameters()]
        with torch.enable_grad():
            weights = self.network.own(names, len(support))
            for _ in range(options.steps):
                if not differentiable:
                    weights = leaves(weights)
                seen = self.network(support.x, weights, track=False)
                loss = support.loss(seen.outputs, support.y).sum()
                weights = descend(
                    loss, weights, options.inner_lr, second_order=differentiable and not options.first_order
                )
            # The queries meet the statistics of the adapted network.
            statistics = self.network(support.x, weights).statistics if seen.statistics else {}
        adapted = Adapted(weights, statistics)
        return adapted if differentiable else adapted.detached()

    def predict(self, adapted: Adapted, query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``."""
        return self.network(query, adapted.weights, adapted.statistics).outputs
