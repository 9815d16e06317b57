r"""An instant classifier of small tables: a hypernetwork reads the labelled rows and makes the weights of an MLP.

For rows X with features :math:`f = 1 \dots F` and classes Y, one forward pass gives the MLP
:math:`x \mapsto V \operatorname{ReLU}(\sum_f x_f w_f)`, one of the features being the constant 1:

.. math:: w_f = (1 + \gamma(z_f)) \odot r_f + \beta(z_f), \qquad z_f = E(x_f, Y), \qquad
          V = \operatorname{ridge}(H, Y) + s\Delta(H, Y), \qquad H = \operatorname{ReLU}(X W)

with sparse random numbers :math:`r_f`.  The encoder E reads how each feature differs between the classes, γ and β are
linear maps, s = 0.2, and Δ is the residual of :class:`~l2l_hyper.methods.HyperAdapter`, by attention of class tokens to
the rows.  Any number of features and classes will do; the order of the classes does not matter.

After Bonet et al. 2024, "HyperFast", https://arxiv.org/abs/2402.14335, and Mueller et al. 2023, "MotherNet",
https://arxiv.org/abs/2312.08598, whose networks have a fixed number of inputs and no closed form.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..functional import Generated
from ..hypernet import Attention, FeatureWise, HyperNetwork, Target
from ..hypernet.encoders import feed_forward
from ..methods.base_learners import Ridge
from ..methods.residual import Residual

__all__ = ["FeatureEncoder", "TabularHyperNetwork", "scaled"]

_SCALE = 0.2  # of the residual, as in HyperAdapter
_READ = (1, 2, 3, 5)  # features that a hidden unit may read; others read all of them


def scaled(x: Tensor, rows: Tensor) -> Tensor:
    """Two scalings of samples ``(N, F)`` by the rows ``(M, F)`` of a training set, with shape ``(2, N, F)``.

    The first is the distance from the mean in standard deviations, at most 4; the second the normal quantile of the
    share of rows that are smaller, of which ties count half.  A feature that is constant in the training set is 0.
    """
    std, mean = torch.std_mean(rows, 0, correction=0)
    std = std.where(std > 0, math.inf)
    ordered = rows.T.contiguous().sort().values
    ranks = [torch.searchsorted(ordered, x.T.contiguous(), right=right) for right in (False, True)]
    shares = ((ranks[0] + ranks[1]).T.to(x) + 1) / (2 * len(rows) + 2)
    quantiles = torch.special.ndtri(shares).where(std < math.inf, 0)
    return torch.stack([((x - mean) / std).clamp(-4, 4), quantiles])


class FeatureEncoder(nn.Module):
    r"""One embedding per feature of a labelled set: how functions of the feature differ between the classes.

    For K learned functions :math:`\phi(x_{nf})` it reads the mean, the variance and the share of the variance that lies
    between the classes, the number of rows and of classes; then the features attend to each other.

    Shape: ``(*, N, F)`` and one-hot classes ``(*, N, C)`` to ``(*, F, E)``.
    """

    def __init__(self, width: int, *, functions: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.functions = nn.Linear(1, functions)
        self.read = nn.Sequential(nn.Linear(3 * functions + 2, width), nn.ReLU(), nn.Linear(width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mix = Attention(width, heads)
        self.mlp = feed_forward(width, 0.0)
        self.out_features = width

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        """Encode the features of a set."""
        values = torch.tanh(self.functions(x.unsqueeze(-1)))  # (*, N, F, K)
        variance, mean = torch.var_mean(values, -3, correction=0)
        shares = targets.mean(-2)
        of_classes = targets / targets.sum(-2, keepdim=True).clamp_min(1)
        means = torch.einsum("...nc,...nfk->...cfk", of_classes, values)
        squares = (means - mean.unsqueeze(-3)).square()
        between = torch.einsum("...c,...cfk->...fk", shares, squares) / (variance + 1e-6)
        sizes = x.new_tensor(targets.shape[-2:]).log().expand(*mean.shape[:-1], 2)
        z = self.read(torch.cat([mean, variance, between, sizes], -1))
        h = self.norms[0](z)
        z = z + self.mix(h, h)
        return self.norms[1](z + self.mlp(z))


class TabularHyperNetwork(nn.Module):
    """A classifier of tables that is fitted by one forward pass; as an ensemble of generated MLPs.

    It is trained over many tables, by the loss of :meth:`forward` on rows that it did not read.  Then :meth:`fit`
    generates the classifier of a new table, as an estimator of scikit-learn is fitted.  Categories should be given as
    one column of zeros and ones per category.

    Args:
        hidden: units of the hidden layer of a generated MLP.
        members: MLPs whose probabilities are averaged; every other one reads ranks, see :func:`scaled`.
        width: of the encoder and of the attention.
        seed: of the random numbers of the first layers.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> classifier = TabularHyperNetwork(hidden=64).fit(X[::2], y[::2])  # nothing is trained: a ridge regression
        >>> bool((classifier.predict(X[1::2]) == y[1::2]).mean() > 0.9)
        True
        >>> classifier.predict_proba(X[1::2]).shape
        (75, 3)
        >>> classifier.network.freeze({name: weight[0] for name, weight in classifier.weights.items()})
        Sequential(
          (0): Linear(in_features=4, out_features=64, bias=True)
          (1): ReLU()
          (2): Linear(in_features=64, out_features=3, bias=True)
        )
    """

    classes_: np.ndarray[Any, Any]
    network: Generated
    weights: dict[str, Tensor]

    def __init__(self, *, hidden: int = 512, members: int = 8, width: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.columns = HyperNetwork(FeatureEncoder(width), FeatureWise(width, Target({"column": (hidden,)})))
        self.ridge = Ridge(hidden)
        self.residual = Residual(hidden, 0, "attention", width=width, blocks=1, heads=4, dropout=0.0)
        self.hidden, self.members, self.seed = hidden, members, seed

    def random_columns(self, features: int, generator: torch.Generator) -> Tensor:
        """What the columns are made from, ``(members, F + 1, H)``: a unit reads 1, 2, 3, 5 or all features."""
        shape = (self.members, features, self.hidden)
        units = torch.arange(self.hidden) % (len(_READ) + 1)
        read = torch.tensor([*_READ, features])[units].clamp_max(features)
        chosen = torch.rand(shape, generator=generator).argsort(1).argsort(1) < read
        columns = torch.randn(shape, generator=generator) * chosen / read.sqrt()
        bias = torch.randn(self.members, 1, self.hidden, generator=generator)
        return torch.cat([columns, bias], 1)

    def embed(self, x: Tensor, y: Tensor, classes: int) -> Tensor:
        """Embeddings ``(members, F + 1, E)`` of the features of rows ``(N, F)`` with classes ``(N,)``, and of 1."""
        return self._encode(self._views(x, x), y, classes)

    def generate(
        self, x: Tensor, y: Tensor, classes: int, *, generator: torch.Generator | None = None, z: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weights of ``members`` MLPs from scaled rows ``(members, N, F)`` and their classes ``(N,)``.

        Args:
            x: the rows.
            y: their classes.
            classes: how many there are.
            generator: of the random numbers; by default a new one with the seed.
            z: embeddings of features in the place of those of these rows.
        """
        generator = torch.Generator().manual_seed(self.seed) if generator is None else generator
        z = self._encode(x, y, classes) if z is None else z
        start = {"column": self.random_columns(x.shape[-1], generator).to(x)}
        columns = start["column"] + self.columns.generator(z, start)["column"]
        hidden = torch.relu(_with_constant(x) @ columns)
        targets = F.one_hot(y, classes).to(x).expand(len(x), -1, -1)
        layer = self.ridge.of_values(hidden, targets)
        weight, bias = layer.weight, cast(Tensor, layer.bias)
        predictions = hidden @ weight.mT + bias.unsqueeze(-2)
        changes, units = self.residual(hidden, None, targets, predictions, weight, bias)
        return {
            "0.weight": columns[:, :-1].mT,
            "0.bias": columns[:, -1],
            "2.weight": weight + _SCALE * units[0] * changes[0],
            "2.bias": bias + _SCALE * units[1] * changes[1],
        }

    def forward(self, x: Tensor, y: Tensor, queries: Tensor, classes: int, **options: Any) -> Tensor:
        """Logits ``(members, Q, C)`` of queries ``(Q, F)``, from rows ``(N, F)`` and their classes ``(N,)``.

        ``options`` are those of :meth:`generate`.
        """
        weights = self.generate(self._views(x, x), y, classes, **options)
        return self._mlp(x.shape[-1], classes).each(weights, self._views(queries, x))

    @torch.no_grad()
    def fit(self, X: ArrayLike, y: ArrayLike) -> TabularHyperNetwork:
        """Generate a classifier from rows ``(N, F)`` and their classes ``(N,)``, of any kind that numpy sorts.

        Raises:
            InputError: for what is no table of finite numbers, and for another number of classes than of rows.
        """
        rows, labels = self._table(X), np.asarray(y)
        if labels.shape != (len(rows),):
            raise InputError(f"expected one class per row, of shape ({len(rows)},), got {labels.shape}; try y.ravel()")
        self.classes_, indices = np.unique(labels, return_inverse=True)
        own = torch.as_tensor(indices, device=rows.device)
        self.weights = self.generate(self._views(rows, rows), own, len(self.classes_))
        self.network, self.rows = self._mlp(rows.shape[1], len(self.classes_)), rows
        return self

    @torch.no_grad()
    def predict_proba(self, X: ArrayLike) -> np.ndarray[Any, Any]:
        """Probabilities ``(Q, C)`` of the classes in the order of ``classes_``: the mean of those of the members.

        Raises:
            InputError: before :meth:`fit`, and for other features than it had.
        """
        if not hasattr(self, "weights"):
            raise InputError("expected a classifier that was fitted; try fit(X, y) first")
        x = self._table(X)
        if x.shape[1] != self.rows.shape[1]:
            raise InputError(f"expected the {self.rows.shape[1]} features of fit, got {x.shape[1]}")
        return self.network.each(self.weights, self._views(x, self.rows)).softmax(-1).mean(0).cpu().numpy()

    def predict(self, X: ArrayLike) -> np.ndarray[Any, Any]:
        """The most probable class of each row, ``(Q,)``; errors are those of :meth:`predict_proba`."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def _encode(self, x: Tensor, y: Tensor, classes: int) -> Tensor:
        return self.columns.encoder(_with_constant(x), F.one_hot(y, classes).to(x).expand(len(x), -1, -1))

    def _mlp(self, features: int, classes: int) -> Generated:
        first, last = nn.Linear(features, self.hidden, device="meta"), nn.Linear(self.hidden, classes, device="meta")
        return Generated(nn.Sequential(first, nn.ReLU(), last))

    def _views(self, x: Tensor, rows: Tensor) -> Tensor:
        """Samples as each member reads them, ``(members, N, F)``."""
        return scaled(x, rows)[torch.arange(self.members) % 2]

    def _table(self, X: ArrayLike) -> Tensor:
        like = next(self.parameters())
        table = np.asarray(X)
        if table.ndim != 2 or 0 in table.shape or table.dtype.kind not in "fiub" or not np.isfinite(table).all():
            raise InputError(
                f"expected a table (rows, features) of finite numbers, got {table.dtype} of shape {table.shape}; "
                "fill in what is missing, and give categories as columns of zeros and ones"
            )
        return torch.as_tensor(table, dtype=like.dtype, device=like.device)


def _with_constant(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)
