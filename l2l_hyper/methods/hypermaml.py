r"""HyperMAML, Przewięźlikowski et al. 2022, "HyperMAML: Few-Shot Adaptation of Deep Models with Hypernetworks",
https://arxiv.org/abs/2205.15745.

MAML whose inner loop is one step that a hypernetwork makes, of the last layer (w, b):

.. math:: (w_k, b_k)' = (w_k, b_k) - H\bigl(\bar h_k,\; \bar p_k,\; \bar p_{k|\neg k}\bigr)

H, a perceptron with ReLUs, reads of class k its mean support feature and what the network predicts before the step: the
mean probability of class k on the samples of class k, and on those of the other classes.

What differs from the authors' code: it gives H the probabilities of all classes in their order and the *number* of the
class, so that relabelling a task changes its answers; the two probabilities above take their place, which say how right
the prediction is and depend on no order.  Its gradient-trained warm-up, during which steps of MAML are blended with the
generated one, which is then applied five times, is left out; so is the use of query batches for normalization, which
here is what the experiment declares.  The gradient passes through the predictions.  As there, the last layer at the
start is the network's own, so ways are those that it was made for; shots are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.episode import SupportSet
from ..functional import full_precision
from ..settings import Count, Depth
from .contract import Method, Options
from .taskwise import Adapted, TaskwiseNetwork, class_means

__all__ = ["HyperMAML", "HyperMAMLOptions"]


@dataclass(frozen=True, kw_only=True)
class HyperMAMLOptions(Options):
    """Options of HyperMAML.

    Attributes:
        width: width of the hidden layers of H.
        hidden: their number.
    """

    width: Count = 256
    hidden: Depth = 2


class HyperMAML(Method):
    """HyperMAML for T tasks at once.

    Args:
        model: the network; its last layer must make the outputs.
        options: see :class:`HyperMAMLOptions`.

    Raises:
        InputError: when it adapts, for other ways than the network has outputs.
    """

    Options = HyperMAMLOptions
    label = "HyperMAML"

    def __init__(self, model: nn.Module, options: HyperMAMLOptions = HyperMAMLOptions()) -> None:  # noqa: B008 - frozen
        super().__init__()
        self.network = TaskwiseNetwork(model)
        features = self.network.head.in_features
        rows = features + (self.network.head.bias is not None)
        widths = [features + 2, *[options.width] * options.hidden]
        layers = [layer for i, o in zip(widths, widths[1:], strict=False) for layer in (nn.Linear(i, o), nn.ReLU())]
        self.step = nn.Sequential(*layers, nn.Linear(options.width, rows))

    def adapt(self, support: SupportSet) -> Adapted:
        """The last layer after the generated step."""
        self.network.check_ways(support)
        seen = self.network(support.x)
        one_hot = support.one_hot(seen.features.dtype)
        with full_precision(seen.features.device):
            head = self.network.own(self.network.head_names, len(support))
            probabilities = seen.logits.softmax(-1)
            means, shots = class_means(seen.features, one_hot)
            own = (one_hot * probabilities).sum(1).unsqueeze(-1) / shots
            others = ((1 - one_hot) * probabilities).sum(1).unsqueeze(-1) / (one_hot.shape[1] - shots).clamp_min(1)
            step = self.step(torch.cat([means, own, others], -1))
            changes = [step[..., : means.shape[-1]], step[..., -1]]
            weights = {name: w - change for (name, w), change in zip(head.items(), changes, strict=False)}
        return Adapted(weights, seen.statistics)

    def predict(self, adapted: Adapted, query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``."""
        return self.network(query, adapted.weights, adapted.statistics).outputs
