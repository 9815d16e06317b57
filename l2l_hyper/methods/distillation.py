r"""Distillation in closed form: a last layer that repeats what a larger network says of stored samples.

The encoder g reads the support set of a task, and says of each of B stored training samples :math:`x_b`, the bank,
which class of the task it is most alike,

.. math:: p_{bk} = \operatorname{softmax}_k\bigl(\tau \cos(g(x_b), \bar g_k)\bigr), \qquad
          \bar g_k = \operatorname{mean}_{n: y_n = k} \frac{g(x_n)}{\lVert g(x_n) \rVert}.

The layer that says the same from the features :math:`h_b` of the network that answers queries is a ridge regression,

.. math:: \Delta = (\tilde H^\top \tilde H + \lambda v B\,I)^{-1}\,\tilde H^\top \tilde P,

with the means over the bank taken off H and P, and v the mean variance of a feature.  Its size is learned, in units of
the base learner's weights, as are τ and λ.  The samples of the bank are of training classes; their labels are not read.

After Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", https://arxiv.org/abs/1503.02531, where a
network is trained to repeat the outputs of another one, and Bertinetto et al. 2019, https://arxiv.org/abs/1805.08136,
where a network is trained through a ridge regression.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..functional import in_float32
from .modulation import root_mean_square
from .taskwise import TaskwiseNetwork, class_means

__all__ = ["Bank", "Distillation"]

_READ_AT_ONCE = 256


class Bank(nn.Module):
    """Stored samples, and what two networks make of them.

    In training mode the features are those of the network as it is, of a random part of the samples, and gradients
    pass through them.  In evaluation mode they are buffers, as running averages are: computed from all samples when the
    weights of the network have changed, saved and loaded with the method, and constants for gradients.

    Args:
        size: B.
        read: E, the features of the encoder.
        features: D, the features of the network.
        at_once: samples that are taken in training.
    """

    samples: Tensor | None
    read: Tensor
    features: Tensor

    def __init__(self, size: int, read: int, features: int, at_once: int) -> None:
        super().__init__()
        self.at_once = at_once
        self.register_buffer("samples", None, persistent=False)
        self.register_buffer("read", torch.zeros(size, read))
        self.register_buffer("features", torch.zeros(size, features))
        self._made_by: dict[str, Tensor] = {}  # the state of the network that made the features

    @torch.no_grad()
    def store(self, samples: Tensor, encoder: TaskwiseNetwork) -> None:
        """Take the samples ``(B, *)``, and what the frozen encoder makes of them."""
        self.samples = samples
        self.read = torch.cat([F.normalize(_features(encoder, part), dim=-1) for part in samples.split(_READ_AT_ONCE)])

    def forward(self, network: TaskwiseNetwork) -> tuple[Tensor, Tensor]:
        """What the encoder ``(b, E)`` and the network ``(b, D)`` make of b samples.

        Raises:
            InputError: where there are no samples and they are needed.
        """
        if self.training:
            if self.samples is None:
                raise InputError("expected the samples of the bank to train with, got none; give bank=")
            chosen = torch.randperm(len(self.samples), device=self.samples.device)[: self.at_once]
            return self.read[chosen], _features(network, self.samples[chosen])
        if self.samples is not None and not _equal(network.state_dict(), self._made_by):
            with torch.no_grad():
                parts = self.samples.split(_READ_AT_ONCE)
                self.features = torch.cat([_features(network, part) for part in parts])
            self._made_by = {name: value.clone() for name, value in network.state_dict().items()}
        if not self.features.any():
            raise InputError("expected the samples of the bank, got none; give bank=")
        return self.read, self.features


class Distillation(nn.Module):
    """Δ of a last layer, see the formulas above.

    Args:
        features: D.
        read: E, the features of the encoder.
        size: B.
        at_once: samples of the bank that are taken in training.
    """

    def __init__(self, features: int, read: int, *, size: int, at_once: int) -> None:
        super().__init__()
        self.bank = Bank(size, read, features, at_once)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(15.0)))
        self.log_ridge = nn.Parameter(torch.tensor(math.log(0.1)))
        self.log_size = nn.Parameter(torch.zeros(()))

    def forward(
        self, network: TaskwiseNetwork, read: Tensor, targets: Tensor, weight: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Changes of the weight ``(T, C, D)`` and the bias ``(T, C)`` in their units, and the two units.

        Args:
            network: what makes the features.
            read: what the encoder makes of the support samples, ``(T, N, E)``.
            targets: ``(T, N, C)``.
            weight: of the base learner, ``(T, C, D)``.
        """
        means = F.normalize(class_means(F.normalize(read, dim=-1), targets)[0], dim=-1)
        of_encoder, of_network = (made.to(weight.dtype) for made in self.bank(network))
        said = (self.log_temperature.exp() * (means @ of_encoder.T)).softmax(1)  # (T, C, b)
        centre = of_network.mean(0)
        h = (of_network - centre) / len(of_network) ** 0.5
        gram = h.T @ h
        ridge = self.log_ridge.exp() * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        sums = (said - said.mean(-1, keepdim=True)) @ h
        rows = torch.linalg.solve(gram + ridge, sums.mT).mT
        change, unit = self.log_size.exp() * rows / root_mean_square(rows), root_mean_square(weight)
        return (change, -change @ centre), (unit, unit.squeeze(-1))


def _equal(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    pairs = ((value, other[name]) for name, value in state.items() if name in other)
    return len(state) == len(other) and all(a.device == b.device and torch.equal(a, b) for a, b in pairs)


def _features(network: TaskwiseNetwork, samples: Tensor) -> Tensor:
    return in_float32(network(samples.unsqueeze(0), track=False).features[0])
