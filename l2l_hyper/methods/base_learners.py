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


def missing_noise(features: Tensor, targets: Tensor, means: Tensor, shots: Tensor) -> Tensor:
    r"""What the squared length of each class mean would gain with as few shots as the class of fewest has, ``(T, C)``.

    .. math:: \sigma^2 \left(\frac1{K_{min}} - \frac1{K_c}\right), \qquad
              \sigma^2 = \frac{1}{N - C} \sum_n \lVert h_n - \mu_{y_n} \rVert^2

    The noise of a mean of K samples adds :math:`\sigma^2/K` to its squared length and to its squared distance from
    every query, so classes of few shots lose queries to the others unless all have as much of it.
    """
    degrees = (shots.sum((-2, -1)) - shots.shape[-2]).clamp_min(1)  # no fewer, whatever the shares of soft labels
    variance = (features - targets @ means).square().sum((-2, -1)) / degrees
    return variance.unsqueeze(-1) * (1 / shots.amin(-2) - 1 / shots.squeeze(-1))


class Prototype(BaseLearner):
    r"""Prototypical Network as a linear layer: :math:`w_c = 2\tau\mu_c,\; b_c = -\tau\lVert\mu_c\rVert^2`.

    :math:`\mu_c` is the mean feature of class c and :math:`\tau` a learned temperature that starts at 1, where the
    outputs are minus the squared distances up to a constant per sample.  See Snell et al. 2017,
    https://arxiv.org/abs/1703.05175.

    Where shots differ, :math:`\lVert\mu_c\rVert^2` gains :func:`missing_noise`.

    Args:
        features: D.
        published: whether to leave out that term and :func:`spread_bound`, which is 1 up to 2,048 features.
    """

    def __init__(self, features: int, *, published: bool = False) -> None:
        super().__init__(features)
        self.published = published
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, targets: Tensor) -> LastLayer:
        """Weight and bias from class means."""
        means, shots = class_means(features, targets)
        temperature, squares = (_TEMPERATURE_RATE * self.log_temperature).exp().view(1, 1, 1), means.square().sum(-1)
        if not self.published:
            temperature = temperature * spread_bound(features)
            squares = squares + missing_noise(features, targets, means, shots)
        return LastLayer(2 * temperature * means, -temperature[..., 0] * squares)


class Cosine(BaseLearner):
    r"""Cosine similarity to class means, :math:`w_c = \tau\,\mu_c / \lVert \mu_c \rVert`, for features of unit length.

    :math:`\tau` is learned and starts at 10.  See Gidaris and Komodakis 2018, https://arxiv.org/abs/1804.09458.
    Where shots differ, :math:`\lVert\mu_c\rVert^2` gains :func:`missing_noise`.

    Args:
        features: D.
        published: whether to leave out that term.
    """

    unit_length = True

    def __init__(self, features: int, *, published: bool = False) -> None:
        super().__init__(features)
        self.published = published
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, features: Tensor, targets: Tensor) -> LastLayer:
        """Weight from class means."""
        means, shots = class_means(features, targets)
        squares = means.square().sum(-1)
        if not self.published:
            squares = squares + missing_noise(features, targets, means, shots)
        rows = means * squares.clamp_min(1e-24).rsqrt().unsqueeze(-1)
        return LastLayer(self.log_scale.exp() * rows, means.new_zeros(squares.shape))


class Gaussian(BaseLearner):
    r"""Bayes classifier under Gaussian classes with shared covariances (PLDA), all of them learned.

    Features of class k are :math:`N(\mu_k, \Lambda^{-1})` and class means :math:`N(m, \Psi\Lambda^{-1})`, both
    diagonal.  From K shots with mean :math:`\bar x_k` the posterior mean and the predictive variance, in units of the
    within-class variance, are

    .. math:: c_k = m + r_K (\bar x_k - m), \quad v_K = 1 + \psi/(K\psi + 1), \quad r_K = K\psi/(K\psi + 1)

    and the outputs are :math:`2\alpha\log N(x; c_k, \alpha v_K\Lambda^{-1})` less what all classes share: of
    :math:`-\lambda x^2/v_K - \alpha\log v_K` the mean over classes, which leaves nothing where all have as many shots.

    With equal shots :math:`\Lambda`, :math:`\psi` and m only say how certain the outputs are and how much each feature
    counts, and are learned as that.  Where shots differ they decide between classes, and what they are in this task is
    known from its support set: :math:`\alpha` keeps the logarithm in proportion to the distances, :math:`\psi` is
    multiplied by one number, so that its mean over features is :math:`\hat\psi`, and m is the mean of the class means
    with weights :math:`r_K`.

    .. math:: \alpha = \frac{1}{D\,(N - C)} \sum_{n,d} \lambda_d\,(h_{nd} - \bar x_{y_n d})^2, \qquad
              \hat\psi = \frac{1}{\alpha D} \sum_d \lambda_d \operatorname{Var}_k \bar x_{kd}
              - \frac1C \sum_k \frac1{K_k}

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
        within = self.log_precision.exp()
        within = spread_bound(features, within) * within
        # Soft labels may add up to equal shots but for rounding, and the two formulas differ where shots are equal.
        unequal = ((shots - shots[:, :1]).abs() > 1e-3 * shots).any(1, keepdim=True)
        if not unequal.any():
            classes, variance = self._posterior(means, shots, self.mean, self.log_ratio)
            precision = within / variance
            return LastLayer(2 * precision * classes, -(precision * classes.square()).sum(-1))
        degrees = (shots.sum(1, keepdim=True) - shots.shape[1]).clamp_min(1)  # no fewer, whatever soft labels share
        alpha = (within * (features - targets @ means).square()).mean(-1, keepdim=True).sum(1, keepdim=True) / degrees
        between = (within * means.var(1, keepdim=True)).mean(-1, keepdim=True)
        ratio = (between / alpha.clamp_min(1e-12) - (1 / shots).mean(1, keepdim=True)).clamp(1e-3, 1e6)
        log_ratio = self.log_ratio - self.log_ratio.exp().mean().log() + ratio.log()
        shares = torch.softmax(F.logsigmoid(log_ratio + shots.log()), 1)
        mean = (shares * means).sum(1, keepdim=True)
        classes, variance = self._posterior(
            means, shots, torch.where(unequal, mean, self.mean), torch.where(unequal, log_ratio, self.log_ratio)
        )
        precision, size = within / variance, alpha.squeeze(-1) * variance.log().sum(-1)
        bias = size.mean(-1, keepdim=True) - size - (precision * classes.square()).sum(-1)
        return LastLayer(2 * precision * classes, bias, precision.mean(-2, keepdim=True) - precision)

    @staticmethod
    def _posterior(means: Tensor, shots: Tensor, mean: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        """c_k and v_K."""
        shrink = torch.sigmoid(log_ratio + shots.log())  # r_K
        return mean + shrink * (means - mean), 1 + shrink / shots


class Ridge(BaseLearner):
    r"""Closed-form ridge regression to the targets, with a learned penalty and scale (R2-D2).

    :math:`W = \tau\,H^\top (H H^\top + \lambda I)^{-1} Y` on features with a constant one appended, solved in the
    smaller of the two forms.  See Bertinetto et al. 2019, https://arxiv.org/abs/1805.08136.

    Where shots differ, samples are weighed so that classes count alike, and the row of class c is divided by

    .. math:: 1 + u_c\,\bar K\,t\,(1/K_{min} - 1/K_c), \qquad t = \operatorname{tr}(\Sigma M^{-1}),

    with :math:`\bar K` the mean number of shots, :math:`u_c` what the regression leaves of the target of class c at its
    mean, and :math:`\Sigma` the covariance within classes; :math:`M`, the regularized scatter of the other samples, is
    known by what the regression leaves of the deviations from the class means.  A row follows the noise in the mean of
    its own class, by which it answers too little to its queries; so every row follows as much as that of fewest shots.
    """

    needs_classes = False

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.log_penalty = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, targets: Tensor) -> LastLayer:
        """Weight and bias from classes."""
        shots = targets.sum(-2)
        present = shots > 0
        if ((shots == shots.amax(-1, keepdim=True)) | ~present).all():
            return self.of_values(features, targets)
        classes, shots = present.sum(-1, keepdim=True), shots.where(present, 1)
        mean = (targets.sum((-2, -1)).unsqueeze(-1) / classes).unsqueeze(-1)
        roots = (targets @ (mean / shots.unsqueeze(-1))).sqrt()
        weighed = roots * targets
        deviations = torch.eye(targets.shape[-2]).to(targets) - targets @ (targets / shots.unsqueeze(-2)).mT
        deviations = deviations.mT / roots
        solution, left = self._regressed(roots * _with_one(features), torch.cat([weighed, deviations], -1))
        of_classes, of_deviations = left.split([targets.shape[-1], targets.shape[-2]], -1)
        unmet = (weighed * of_classes).sum(-2) / mean.squeeze(-1)
        whole, rest = (((deviations * of).sum((-2, -1))).unsqueeze(-1) for of in (deviations, of_deviations))
        degrees = (targets.sum((-2, -1)).unsqueeze(-1) - classes).clamp_min(1)
        noise = mean.squeeze(-1) * (whole / rest - 1) * whole / degrees
        fewest = shots.where(present, torch.inf).amin(-1, keepdim=True)
        divisor = 1 + unmet * noise * (1 / fewest - 1 / shots)
        return self._layer(solution[..., : targets.shape[-1]] / divisor.unsqueeze(-2))

    def of_values(self, features: Tensor, targets: Tensor) -> LastLayer:
        """Weight and bias from values, by the normal equations."""
        return self._layer(self._regressed(_with_one(features), targets)[0])

    def _regressed(self, h: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The solution ``(T, D + 1, C)``, and what it leaves of the targets, ``(T, N, C)``."""
        penalty, transposed = self.log_penalty.exp(), h.mT
        if h.shape[-2] <= h.shape[-1]:
            gram = h @ transposed + penalty * torch.eye(h.shape[-2], dtype=h.dtype, device=h.device)
            dual = torch.linalg.solve(gram, targets)
            return transposed @ dual, penalty * dual
        gram = transposed @ h + penalty * torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
        solution = torch.linalg.solve(gram, transposed @ targets)
        return solution, targets - h @ solution

    def _layer(self, solution: Tensor) -> LastLayer:
        rows = self.log_scale.exp() * solution.mT
        return LastLayer(rows[..., :-1], rows[..., -1])


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[..., :1])], -1)


BASE_LEARNERS: dict[str, type[BaseLearner]] = {
    "gaussian": Gaussian,
    "prototype": Prototype,
    "cosine": Cosine,
    "ridge": Ridge,
}
"""Base learners by the name that ``base_learner=`` takes."""
