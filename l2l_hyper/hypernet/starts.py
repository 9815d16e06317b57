"""Closed-form starts: at initialization the learner is exactly one of its baselines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from .support import Support

__all__ = ["STARTS", "BaseStart", "GaussianStart", "GradientStart", "PrototypeStart", "RidgeStart", "Start"]

# A network whose features are large begins far too certain; at the step size of its weights the temperature would need
# thousands of iterations to follow.
_TEMPERATURE_RATE = 10.0


class Start(nn.Module):
    """Base of the starts: ``start(support)`` gives weights with a leading task dimension.

    Args:
        names: names of all generated weights; the first two are the last layer's weight and bias.
        features: D, the inputs of the last layer.
        lr: inner learning rate, for the start that takes a gradient step.

    A start with ``uses_base`` begins at the network's own weights; one without it computes the last layer from the
    support set alone and leaves other generated weights as they are.  One with ``uses_gradient`` takes a step each
    time a task is adapted; the others only the first time.
    """

    uses_base: ClassVar[bool] = False
    uses_gradient: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False

    def __init__(self, names: Sequence[str], features: int, lr: float) -> None:
        super().__init__()
        self.names = tuple(names)
        self.lr = lr

    def forward(self, support: Support) -> dict[str, Tensor]:
        """Starting weights for each task."""
        if self.needs_classes and not support.classification:
            raise InputError(
                f"{type(self).__name__} makes one class vector a class, but the targets are values; "
                "try start='ridge' or start='gradient'"
            )
        weight, bias = self.last_layer(support)
        return {**support.weights, self.names[0]: weight, self.names[1]: bias}

    def last_layer(self, support: Support) -> tuple[Tensor, Tensor]:
        """Weight ``(T, C, D)`` and bias ``(T, C)`` of the last layer."""
        raise NotImplementedError


class BaseStart(Start):
    """The network's own weights: the start of plain fine-tuning, and the one for a given description."""

    uses_base = True

    def forward(self, support: Support) -> dict[str, Tensor]:
        """The weights as they are."""
        return support.weights


class GradientStart(Start):
    r"""One gradient step, :math:`W_0 - \alpha\,\partial L/\partial W`: one inner step of MAML on the generated weights.

    With only the last layer generated it is ANIL's.  See Finn et al. 2017, https://arxiv.org/abs/1703.03400, and
    Raghu et al. 2020, https://arxiv.org/abs/1909.09157.
    """

    uses_base = True
    uses_gradient = True

    def forward(self, support: Support) -> dict[str, Tensor]:
        """The weights after one step; ``support.outputs`` must have been computed from ``support.weights``."""
        learned = {name: w for name, w in support.weights.items() if w.requires_grad}
        try:
            gradients = torch.autograd.grad(
                support.outputs,
                list(learned.values()),
                support.delta,
                create_graph=support.second_order,
                retain_graph=True,
                allow_unused=support.allow_unused,
            )
        except RuntimeError as error:
            raise InputError(
                f"expected outputs that depend on every generated weight ({str(error).splitlines()[0]}); "
                "try allow_unused=True, or generate fewer"
            ) from error
        moved = {
            n: torch.add(w, g, alpha=-self.lr)
            for (n, w), g in zip(learned.items(), gradients, strict=True)
            if g is not None
        }
        return {**support.weights, **moved}


class PrototypeStart(Start):
    r"""Prototypical Network as a linear layer: :math:`w_c = 2\tau\mu_c,\; b_c = -\tau\lVert\mu_c\rVert^2`.

    :math:`\mu_c` is the mean feature of class c and :math:`\tau` a learned temperature that starts at 1, where the
    outputs are minus the squared distances up to a constant a sample.  See Snell et al. 2017,
    https://arxiv.org/abs/1703.05175.
    """

    needs_classes = True

    def __init__(self, names: Sequence[str], features: int, lr: float) -> None:
        super().__init__(names, features, lr)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def last_layer(self, support: Support) -> tuple[Tensor, Tensor]:
        """Weight and bias from class means."""
        means, _ = support.class_means()
        temperature = (_TEMPERATURE_RATE * self.log_temperature).exp()
        return 2 * temperature * means, -temperature * means.square().sum(-1)


class GaussianStart(Start):
    r"""Bayes classifier under Gaussian classes with shared covariances (PLDA), all of them learned.

    Features of class k are :math:`N(\mu_k, \Lambda^{-1})` and class means :math:`N(m, \Psi\Lambda^{-1})`, both
    diagonal.  From K shots with mean :math:`\bar x_k` the posterior mean and the predictive variance, in units of the
    within-class variance, are

    .. math:: c_k = m + r_K (\bar x_k - m), \quad v_K = 1 + \psi/(K\psi + 1), \quad r_K = K\psi/(K\psi + 1)

    and the outputs are :math:`2\log N(x; c_k, v_K\Lambda^{-1})` less what all classes share when they have the same
    number of shots.  At :math:`\Lambda = 1, \psi\to\infty` they are those of the prototype start, times
    :math:`K/(K+1)`.  Training begins at :math:`\Lambda = \min(1, 64/D)` and the same :math:`\psi` for every feature.

    See Ioffe 2006, "Probabilistic Linear Discriminant Analysis".
    """

    needs_classes = True

    def __init__(self, names: Sequence[str], features: int, lr: float) -> None:
        super().__init__(names, features, lr)
        self.mean = nn.Parameter(torch.zeros(features))
        # Squared distances grow with the number of features: with more than a few a start would be far too certain.
        self.log_precision = nn.Parameter(torch.full((features,), math.log(min(1.0, 64 / features))))
        self.log_ratio = nn.Parameter(torch.full((features,), 3.0))

    def last_layer(self, support: Support) -> tuple[Tensor, Tensor]:
        """Weight and bias from class means and learned covariances."""
        means, counts = support.class_means()
        shrink = torch.sigmoid(self.log_ratio + counts.log())  # r_K
        variance = 1 + shrink / counts
        precision = self.log_precision.exp() / variance
        classes = self.mean + shrink * (means - self.mean)
        weight = 2 * precision * classes
        return weight, -(precision * classes.square()).sum(-1)


class RidgeStart(Start):
    r"""Closed-form ridge regression to the targets, with a learned penalty and scale (R2-D2).

    :math:`W = \tau\,H^\top (H H^\top + \lambda I)^{-1} Y` on features with a constant one appended, solved in the
    smaller of the two forms.  See Bertinetto et al. 2019, https://arxiv.org/abs/1805.08136.
    """

    def __init__(self, names: Sequence[str], features: int, lr: float) -> None:
        super().__init__(names, features, lr)
        self.log_penalty = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def last_layer(self, support: Support) -> tuple[Tensor, Tensor]:
        """Weight and bias by the normal equations."""
        h = torch.cat([support.features, torch.ones_like(support.features[..., :1])], -1)
        penalty, transposed = self.log_penalty.exp(), h.transpose(-1, -2)
        if h.shape[-2] <= h.shape[-1]:
            gram = h @ transposed + penalty * torch.eye(h.shape[-2], dtype=h.dtype, device=h.device)
            solution = transposed @ torch.linalg.solve(gram, support.targets)
        else:
            gram = transposed @ h + penalty * torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
            solution = torch.linalg.solve(gram, transposed @ support.targets)
        rows = self.log_scale.exp() * solution.transpose(-1, -2)
        return rows[..., :-1], rows[..., -1]


STARTS: dict[str, type[Start]] = {
    "base": BaseStart,
    "prototype": PrototypeStart,
    "gaussian": GaussianStart,
    "gradient": GradientStart,
    "ridge": RidgeStart,
}
"""Starts by the name that ``start=`` takes."""
