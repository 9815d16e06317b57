"""Base learners: closed-form last layers from a support set, exact before anything is learned."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .taskwise import class_means

__all__ = ["BASE_LEARNERS", "BaseLearner", "Cosine", "Gaussian", "LastLayer", "Prototype", "Ridge", "spread_bound"]

# A network whose features are large begins far too certain; at the step size of its weights the temperature would need
# thousands of iterations to follow.
_TEMPERATURE_RATE = 10.0


# Beyond so many features, distances are bounded by what the support set shows, see spread_bound.
_WIDE = 2048
_SPREAD = 8.0


class LastLayer(NamedTuple):
    """Last layers of T tasks, ``weight @ x + bias + quadratic @ x**2``, where bias and quadratic may be missing.

    Shapes: weight and quadratic ``(T, C, D)``, bias ``(T, C)``.
    """

    weight: Tensor
    bias: Tensor | None = None
    quadratic: Tensor | None = None


class BaseLearner(nn.Module):
    """Features ``(T, N, D)`` and one-hot classes or values ``(T, N, C)`` to a :class:`LastLayer` for each of T tasks.

    Args:
        features: D, the inputs of the last layer.

    Attributes:
        needs_classes: whether it makes one vector per class.
        unit_length: whether it is for features of unit length, see :class:`~l2l_hyper.methods.taskwise.Head`.
    """

    needs_classes: ClassVar[bool] = True
    unit_length: ClassVar[bool] = False

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, features: Tensor, targets: Tensor) -> LastLayer:
        """The last layer of each task, from classes."""
        raise NotImplementedError

    def of_values(self, features: Tensor, targets: Tensor) -> LastLayer:
        """The last layer of each task, from values ``(T, N, C)``, for those that do not need classes."""
        raise NotImplementedError


def spread_bound(features: Tensor, precision: Tensor | None = None) -> Tensor:
    r"""By what squared distances are multiplied so that a wide layer does not begin certain of a wrong class.

    .. math:: \beta(S) = \min(1,\; 8 / m(S)), \qquad
              m(S) = \frac1N \sum_n \sum_d \lambda_d\,(h_{nd} - \bar h_d)^2

    for more than 2,048 features, such as the 4,096 of VGG, and 1 for fewer.  The squared distance of two samples is
    then 16 or less on average, whatever the scale of the features.

    Args:
        features: of the support sets, ``(T, N, D)``.
        precision: λ, ``(D,)``; 1 by default.

    Returns:
        β, ``(T, 1, 1)``.
    """
    if features.shape[-1] <= _WIDE:
        return features.new_ones(len(features), 1, 1)
    squares = (features - features.mean(-2, keepdim=True)).square()
    weighed = squares if precision is None else precision * squares
    return _SPREAD / weighed.sum(-1).mean(-1).clamp_min(_SPREAD).view(-1, 1, 1)


class Prototype(BaseLearner):
    r"""Prototypical Network as a linear layer: :math:`w_c = 2\tau\mu_c,\; b_c = -\tau\lVert\mu_c\rVert^2`.

    :math:`\mu_c` is the mean feature of class c and :math:`\tau` a learned temperature that starts at 1, where the
    outputs are minus the squared distances up to a constant per sample.  See Snell et al. 2017,
    https://arxiv.org/abs/1703.05175.

    Args:
        features: D.
        bounded: whether :math:`\tau` is multiplied by :func:`spread_bound`, which is 1 up to 2,048 features.
    """

    def __init__(self, features: int, *, bounded: bool = True) -> None:
        super().__init__(features)
        self.bounded = bounded
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, targets: Tensor) -> LastLayer:
        """Weight and bias from class means."""
        means, _ = class_means(features, targets)
        temperature = (_TEMPERATURE_RATE * self.log_temperature).exp()
        temperature = temperature * spread_bound(features) if self.bounded else temperature.view(1, 1, 1)
        return LastLayer(2 * temperature * means, -temperature[..., 0] * means.square().sum(-1))


class Cosine(BaseLearner):
    r"""Cosine similarity to class means, :math:`w_c = \tau\,\mu_c / \lVert \mu_c \rVert`, for features of unit length.

    :math:`\tau` is learned and starts at 10.  See Gidaris and Komodakis 2018, https://arxiv.org/abs/1804.09458.
    """

    unit_length = True

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, features: Tensor, targets: Tensor) -> LastLayer:
        """Weight from class means."""
        means, _ = class_means(features, targets)
        return LastLayer(self.log_scale.exp() * F.normalize(means, dim=-1), means.new_zeros(means.shape[:-1]))


class Gaussian(BaseLearner):
    r"""Bayes classifier under Gaussian classes with shared covariances (PLDA), all of them learned.

    Features of class k are :math:`N(\mu_k, \Lambda^{-1})` and class means :math:`N(m, \Psi\Lambda^{-1})`, both
    diagonal.  From K shots with mean :math:`\bar x_k` the posterior mean and the predictive variance, in units of the
    within-class variance, are

    .. math:: c_k = m + r_K (\bar x_k - m), \quad v_K = 1 + \psi/(K\psi + 1), \quad r_K = K\psi/(K\psi + 1)

    and the outputs are :math:`2\alpha\log N(x; c_k, \alpha v_K\Lambda^{-1})` less what all classes share: of
    :math:`-\lambda x^2/v_K - \alpha\log v_K` the mean over classes, which leaves nothing where all have as many shots.
    With equal shots :math:`\Lambda` is a temperature and is learned as one.  So :math:`\alpha`, the variance within the
    classes of the support set in units of :math:`\Lambda^{-1}`, keeps the logarithm in proportion to the distances:

    .. math:: \alpha = \frac{1}{D\,(N - C)} \sum_{n,d} \lambda_d\,(h_{nd} - \bar x_{y_n d})^2

    At :math:`\Lambda = 1, \psi\to\infty` the outputs are those of :class:`Prototype`, times :math:`K/(K+1)`.  Training
    begins at :math:`\Lambda = \min(1, 64/D)` and the same :math:`\psi` for every feature.  Of more than 2,048 features
    :math:`\Lambda` is multiplied by :func:`spread_bound` of each support set.

    See Ioffe 2006, "Probabilistic Linear Discriminant Analysis".
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.mean = nn.Parameter(torch.zeros(features))
        # Squared distances grow with the number of features: with more than a few a start would be far too certain.
        self.log_precision = nn.Parameter(torch.full((features,), math.log(min(1.0, 64 / features))))
        self.log_ratio = nn.Parameter(torch.full((features,), 3.0))

    def forward(self, features: Tensor, targets: Tensor) -> LastLayer:
        """Weight and bias from class means and learned covariances."""
        means, shots = class_means(features, targets)
        shrink = torch.sigmoid(self.log_ratio + shots.log())  # r_K
        variance = 1 + shrink / shots
        within = self.log_precision.exp()
        within = spread_bound(features, within) * within
        precision = within / variance
        classes = self.mean + shrink * (means - self.mean)
        weight, bias = 2 * precision * classes, -(precision * classes.square()).sum(-1)
        if (shots == shots[:, :1]).all():
            return LastLayer(weight, bias)
        squares = within * (features - targets @ means).square()
        degrees = (shots.sum((1, 2)) - shots.shape[1]).clamp_min(1)  # no fewer, whatever the shares of soft labels
        alpha = squares.mean(-1).sum(-1) / degrees
        size = alpha.unsqueeze(-1) * variance.log().sum(-1)
        return LastLayer(
            weight, bias - size + size.mean(-1, keepdim=True), precision.mean(-2, keepdim=True) - precision
        )


class Ridge(BaseLearner):
    r"""Closed-form ridge regression to the targets, with a learned penalty and scale (R2-D2).

    :math:`W = \tau\,H^\top (H H^\top + \lambda I)^{-1} Y` on features with a constant one appended, solved in the
    smaller of the two forms.  Samples are weighed so that classes count alike, however many shots they have.
    See Bertinetto et al. 2019, https://arxiv.org/abs/1805.08136.
    """

    needs_classes = False

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.log_penalty = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, targets: Tensor) -> LastLayer:
        """Weight and bias from classes."""
        shots = targets.sum(-2, keepdim=True)
        equal = shots.sum(-1, keepdim=True) / (shots > 0).sum(-1, keepdim=True)
        weights = (targets * (equal / shots.where(shots > 0, 1))).sum(-1, keepdim=True)
        return self.of_values(features, targets, weights.sqrt())

    def of_values(self, features: Tensor, targets: Tensor, roots: Tensor | None = None) -> LastLayer:
        """Weight and bias by the normal equations, with ``roots``, ``(T, N, 1)``, of the weights of the samples."""
        h = torch.cat([features, torch.ones_like(features[..., :1])], -1)
        if roots is not None:
            h, targets = roots * h, roots * targets
        penalty, transposed = self.log_penalty.exp(), h.transpose(-1, -2)
        if h.shape[-2] <= h.shape[-1]:
            gram = h @ transposed + penalty * torch.eye(h.shape[-2], dtype=h.dtype, device=h.device)
            solution = transposed @ torch.linalg.solve(gram, targets)
        else:
            gram = transposed @ h + penalty * torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
            solution = torch.linalg.solve(gram, transposed @ targets)
        rows = self.log_scale.exp() * solution.transpose(-1, -2)
        return LastLayer(rows[..., :-1], rows[..., -1])


BASE_LEARNERS: dict[str, type[BaseLearner]] = {
    "gaussian": Gaussian,
    "prototype": Prototype,
    "cosine": Cosine,
    "ridge": Ridge,
}
"""Base learners by the name that ``base_learner=`` takes."""
