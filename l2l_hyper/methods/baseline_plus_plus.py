r"""Baseline++, Chen et al. 2019, "A Closer Look at Few-shot Classification", https://arxiv.org/abs/1904.04232.

The network is left as it was trained, and a new last layer is trained on the support set.  It measures cosine
similarity to a vector per class, whose length is learned as well; "Baseline" is the same with a linear layer:

.. math:: o_c(x) = \tau\,\ell_c\,\Bigl\langle \frac{h(x)}{\lVert h(x) \rVert}, \frac{v_c}{\lVert v_c \rVert}
          \Bigr\rangle, \qquad \text{or} \qquad o_c(x) = w_c \cdot h(x) + b_c.

As in the authors' code, each step is one of stochastic gradient descent with momentum 0.9, dampening 0.9 and weight
decay 0.001, and there are as many as 100 epochs in batches of 4 samples have.

What differs from the paper: each step takes the mean loss of the whole support set instead of 4 samples of it, so
that the order of samples does not matter; vectors begin at the class means instead of random numbers, as Dhillon et
al. 2020 (https://arxiv.org/abs/1909.02729) advise.  The paper trains the network to classify all training classes,
which ``pretrained`` and ``class_batch`` do here; training by episodes takes the layer that steps would begin at, with
a learned scale :math:`\tau`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.episode import SupportSet
from ..functional import full_precision, in_float32
from ..settings import Depth, Positive
from .contract import Options
from .feature_method import FeatureMethod
from .inner_loop import require_gradients
from .taskwise import Adapted, class_means

__all__ = ["BaselinePlusPlus", "BaselinePlusPlusOptions"]

_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class BaselinePlusPlusOptions(Options):
    """Options of Baseline++.

    Attributes:
        classifier: "cosine" for Baseline++, or "linear" for Baseline.
        inner_lr: learning rate of the steps on a support set.
        epochs: passes over the support set, each of which is as many steps as it has batches of 4 samples.
        scale: τ at the start, of the cosine classifier.
    """

    classifier: Literal["cosine", "linear"] = "cosine"
    inner_lr: Positive = 0.01
    epochs: Depth = 100
    scale: Positive = 10.0


class BaselinePlusPlus(FeatureMethod):
    """Baseline++ for T tasks at once.

    Args:
        model: the network; of its last layer only the inputs matter.
        options: see :class:`BaselinePlusPlusOptions`.
    """

    Options = BaselinePlusPlusOptions
    label = "Baseline++"
    reads_features_only = True

    def __init__(
        self,
        model: nn.Module,
        options: BaselinePlusPlusOptions = BaselinePlusPlusOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(model)
        self.options = options
        self.log_scale = nn.Parameter(torch.tensor(math.log(options.scale)), options.classifier == "cosine")
        if options.classifier == "cosine":
            self.network.read_unit_length()

    def adapt(self, support: SupportSet) -> Adapted:
        """The new last layer of each task; in training that at which the steps would begin."""
        seen, one_hot = self.read(support)
        with full_precision(seen.features.device):
            features = in_float32(seen.features)
            means = F.normalize(class_means(features, one_hot.to(features))[0], dim=-1)
            # vectors and their lengths, or weight and bias
            layer = [means, torch.full_like(means[..., 0], float(self.options.classifier == "cosine"))]
            if not self.training:
                layer = self._descend(layer, features.detach(), support)
            weight, bias = self._last_layer(*layer)
        return Adapted(self.network.head_weights(weight, bias), seen.statistics)

    def predict(self, adapted: Adapted, query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``."""
        return self.network(query, adapted.weights, adapted.statistics).outputs

    def _last_layer(self, vectors: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        if self.options.classifier == "linear":
            return vectors, numbers
        scale = self.log_scale.exp() * numbers
        return scale.unsqueeze(-1) * F.normalize(vectors, dim=-1), torch.zeros_like(numbers)

    def _descend(self, layer: list[Tensor], features: Tensor, support: SupportSet) -> list[Tensor]:
        require_gradients()
        layer = [part.detach().requires_grad_() for part in layer]
        optimizer = torch.optim.SGD(layer, self.options.inner_lr, momentum=0.9, dampening=0.9, weight_decay=0.001)
        for _ in range(self.options.epochs * math.ceil(features.shape[1] / _BATCH)):
            with torch.enable_grad():
                weight, bias = self._last_layer(*layer)
                loss = support.loss(torch.baddbmm(bias.unsqueeze(1), features, weight.mT), support.rows).sum()
            for part, gradient in zip(layer, torch.autograd.grad(loss, layer), strict=True):
                part.grad = gradient
            optimizer.step()
        return [part.detach() for part in layer]
