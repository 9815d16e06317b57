r"""Dynamic few-shot learning, Gidaris and Komodakis 2018, "Dynamic Few-Shot Visual Learning without Forgetting",
https://arxiv.org/abs/1804.09458.

A generator makes one weight vector per class from its support features and from a bank of vectors :math:`w_b` of base
classes, which each support sample reads by attention; queries are compared by cosine:

.. math:: o_c(x) = \tau \cos(h(x), w_c), \qquad w_c = \phi_{avg} \odot \operatorname{mean}_n \hat h_n +
          \phi_{att} \odot \operatorname{mean}_n \sum_b a_{nb}\,\hat w_b, \qquad
          a_n = \operatorname{softmax}_b\bigl(\gamma \cos(\Phi \hat h_n, k_b)\bigr)

over the samples n of class c, with hats for vectors of length 1 and learned keys :math:`k_b`, map Φ, scales τ and γ.

What differs from the paper: there the bank is the last layer of a network that classifies the training classes, and in
each training episode the rows of the episode's own classes are left out.  Episodes here do not say which classes of
the training set they hold, so the bank is learned with the rest, tied to no classes, and nothing is left out; rows of a
trained classifier may be copied into ``bank`` before training.  The base classes are not recognised beside the new
ones, and one bias of all outputs is left out, which the softmax does not see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.episode import SupportSet
from ..functional import Statistics, full_precision
from ..settings import Count, Positive
from .contract import Options
from .feature_method import FeatureMethod
from .taskwise import class_means

__all__ = ["DynamicFewShot", "DynamicFewShotOptions"]


@dataclass(frozen=True, kw_only=True)
class DynamicFewShotOptions(Options):
    """Options of dynamic few-shot learning.

    Attributes:
        bases: vectors of the bank; in the paper as many as training classes, 64 on mini-ImageNet and CIFAR-FS.
        scale: τ at the start.
        attention_scale: γ at the start.
    """

    bases: Count = 64
    scale: Positive = 10.0
    attention_scale: Positive = 10.0


class DynamicFewShot(FeatureMethod):
    """Dynamic few-shot learning for T tasks at once.

    Args:
        model: the network; of its last layer only the inputs matter.
        options: see :class:`DynamicFewShotOptions`.
    """

    Options = DynamicFewShotOptions
    label = "Gidaris & Komodakis"
    reads_features_only = True

    def __init__(
        self,
        model: nn.Module,
        options: DynamicFewShotOptions = DynamicFewShotOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(model)
        features, spread = self.features, (2 / self.features) ** 0.5
        self.bank = nn.Parameter(spread * torch.randn(options.bases, features))
        self.keys = nn.Parameter(spread * torch.randn(options.bases, features))
        self.map = nn.Linear(features, features)
        with torch.no_grad():
            self.map.weight.copy_(torch.eye(features) + 0.001 * torch.randn(features, features))
            self.map.bias.zero_()
        self.mean_gain, self.bank_gain = nn.Parameter(torch.ones(features)), nn.Parameter(torch.ones(features))
        self.scale = nn.Parameter(torch.tensor(options.scale))
        self.attention_scale = nn.Parameter(torch.tensor(options.attention_scale))

    def adapt(self, support: SupportSet) -> tuple[Tensor, Statistics]:
        """Weight vectors ``(T, C, D)`` of length 1, and statistics for the queries."""
        seen, one_hot = self.read(support)
        with full_precision(seen.features.device):
            samples = F.normalize(seen.features, dim=-1)
            likeness = F.normalize(self.map(samples), dim=-1) @ F.normalize(self.keys, dim=-1).T
            read = (self.attention_scale * likeness).softmax(-1) @ F.normalize(self.bank, dim=-1)
            rows, _ = class_means(self.mean_gain * samples + self.bank_gain * read, one_hot)
            return F.normalize(rows, dim=-1), seen.statistics

    def predict(self, adapted: tuple[Tensor, Statistics], query: Tensor) -> Tensor:
        """Logits ``(T, Q, C)``: cosines, times τ."""
        rows, statistics = adapted
        features = self.read_queries(query, statistics)
        with full_precision(features.device):
            return self.scale * F.normalize(features, dim=-1) @ rows.transpose(-1, -2)
