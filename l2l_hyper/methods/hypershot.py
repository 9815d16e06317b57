r"""HyperShot, Sendera et al. 2023, "HyperShot: Few-Shot Learning by Kernel HyperNetworks",
https://arxiv.org/abs/2203.11378.

Neither the classifier nor the hypernetwork that makes it sees a feature; both see kernels.  With class means μ of the
support features and :math:`k(a, b) = 1 - \cos(a, b)`, the hypernetwork G reads the matrix :math:`K_{ij} = k(\mu_i,
\mu_j)` and makes a perceptron of the vector :math:`r_j(x) = k(\mu_j, h(x))`,

.. math:: (V, v, U, u) = G(K), \qquad z_c = \operatorname{ReLU}\bigl(\textstyle\sum_j V_{cj}\,r_j + v_c\bigr), \qquad
          o_c = \textstyle\sum_j \langle U_{cj}, z_j \rangle + u_c

with hidden vectors :math:`z_c` of H units for each class.  In training the loss takes in the class means as samples of
their classes, as the authors' code does.

What differs from the authors' code: it flattens K, so that relabelling a task changes its answers and ways are fixed.
Here G consists of layers that commute with relabelling (Hartford et al. 2018, https://arxiv.org/abs/1803.02879): each
entry (i, j) sees itself, the entry (j, i), the diagonal at i and j, and means of row i, column j and everything; and
hidden units belong to classes.  Any ways and shots will do.  Fine-tuning on the support set at test, which the
paper reports apart, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.episode import Episodes, SupportSet
from ..functional import Statistics, full_precision
from ..settings import Count, Depth
from .contract import Options
from .feature_method import FeatureMethod
from .taskwise import class_means

__all__ = ["Exchangeable", "HyperShot", "HyperShotOptions", "KernelClassifier"]


@dataclass(frozen=True, kw_only=True)
class HyperShotOptions(Options):
    """Options of HyperShot.

    Attributes:
        width: width of the layers of G.
        layers: their number.
        hidden: H, hidden units of the generated classifier for each class.
        train_on_support: whether the class means are training samples too.
    """

    width: Count = 64
    layers: Depth = 3
    hidden: Count = 16
    train_on_support: bool = True


class KernelClassifier(NamedTuple):
    """The generated perceptrons of T tasks.

    Attributes:
        means: of the classes, ``(T, C, D)``.
        first: V ``(T, C, C, H)`` and v ``(T, C, H)``.
        second: U ``(T, C, C, H)`` and u ``(T, C)``.
        statistics: of the support sets.
    """

    means: Tensor
    first: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]
    statistics: Statistics


class Exchangeable(nn.Module):
    """A linear layer of matrices ``(*, C, C, F)`` to ``(*, C, C, G)`` that commutes with relabelling the C classes."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(7 * in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Each entry from itself, its mirror image, the diagonal, and means of its row, its column and everything."""
        diagonal = x.diagonal(dim1=-3, dim2=-2).transpose(-1, -2)
        rows, columns = x.mean(-2, keepdim=True), x.mean(-3, keepdim=True)
        seen = [diagonal.unsqueeze(-2), diagonal.unsqueeze(-3), rows, columns, rows.mean(-3, keepdim=True)]
        return self.linear(torch.cat([x, x.transpose(-3, -2), *(part.expand_as(x) for part in seen)], -1))


class HyperShot(FeatureMethod):
    """HyperShot for T tasks at once.

    Args:
        model: the network; of its last layer only the inputs matter.
        options: see :class:`HyperShotOptions`.
    """

    Options = HyperShotOptions
    label = "HyperShot"
    reads_features_only = True

    def __init__(self, model: nn.Module, options: HyperShotOptions = HyperShotOptions()) -> None:  # noqa: B008 - frozen
        super().__init__(model)
        self.options = options
        widths = [2, *[options.width] * options.layers]
        self.layers = nn.ModuleList(Exchangeable(i, o) for i, o in zip(widths, widths[1:], strict=False))
        self.weights = nn.Linear(options.width, 2 * options.hidden)
        self.biases = nn.Linear(options.width, options.hidden + 1)

    def adapt(self, support: SupportSet) -> KernelClassifier:
        """The classifier of each task, from the kernel matrix of its class means."""
        seen, one_hot = self.read(support)
        with full_precision(seen.features.device):
            means, _ = class_means(seen.features, one_hot)
            kernel = _kernel(means, means)
            same = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device).expand_as(kernel)
            x = torch.stack([kernel, same], -1)
            for layer in self.layers:
                x = F.relu(layer(x))
            of_pairs, of_classes = self.weights(x).chunk(2, -1), self.biases(x.mean(-2))
        first, second = (of_pairs[0], of_classes[..., :-1]), (of_pairs[1], of_classes[..., -1])
        return KernelClassifier(means, first, second, seen.statistics)

    def predict(self, adapted: KernelClassifier, query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``."""
        features = self.read_queries(query, adapted.statistics)
        with full_precision(features.device):
            return _classify(adapted, features)

    def loss(self, adapted: KernelClassifier, outputs: Tensor, episodes: Episodes) -> Tensor:
        """The episodes' loss; in training, the class means are samples too."""
        labels = episodes.query_labels
        if not self.training or not self.options.train_on_support or labels.is_floating_point():
            return episodes.loss(outputs, labels)
        with full_precision(outputs.device):
            of_means = _classify(adapted, adapted.means)
        own = torch.arange(of_means.shape[1], device=labels.device).expand(len(labels), -1)
        return episodes.loss(torch.cat([outputs, of_means.to(outputs)], 1), torch.cat([labels, own], 1))


def _classify(classifier: KernelClassifier, features: Tensor) -> Tensor:
    """Logits ``(T, Q, C)`` of features ``(T, Q, D)``."""
    relations = _kernel(features, classifier.means)
    (v, v_bias), (u, u_bias) = classifier.first, classifier.second
    hidden = F.relu(torch.einsum("tqj,tcjh->tqch", relations, v) + v_bias.unsqueeze(1))
    return torch.einsum("tqjh,tcjh->tqc", hidden, u) + u_bias.unsqueeze(1)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine of ``(T, M, D)`` and ``(T, N, D)``, ``(T, M, N)``."""
    return 1 - F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(-1, -2)
