r"""Distillation in closed form: a last layer that repeats what a larger network says of stored samples.

The encoder g reads the support set of a task, and says of each of B stored training samples :math:`x_b`, the bank,
which class of the task it is most alike,

.. math:: p_{bk} = \operatorname{softmax}_k\bigl(\tau \cos(g(x_b), \bar g_k)\bigr), \qquad
          \bar g_k = \operatorname{mean}_{n: y_n = k} \frac{g(x_n)}{\lVert g(x_n) \rVert}.

The layer that says the same from the features :math:`h_b` of the network that answers queries minimizes the mean
divergence of :math:`\operatorname{softmax}(V \tilde h_b + a)` from :math:`p_b`, with the mean over the bank taken
off the features, and :math:`a_k` the logarithm of the mean of :math:`p_{bk}`.  From :math:`V = 0` it is found by
eight steps with a bound of the curvature that all tasks have in common (Böhning 1992), so one inverse serves all:

.. math:: V \leftarrow V + 2\,\bigl(P - \operatorname{softmax}(\tilde H V^\top + a)\bigr)^\top \tilde H\,
          \bigl(\tilde H^\top \tilde H + \lambda v B\,I\bigr)^{-1}

with v the mean variance of a feature.  The first step is a ridge regression.  The last layer of the method gains 2V.
Nothing of it is learned, and no label of the bank is read.  In training it is left out: there the bank has the very
classes of the episodes, which no test has.

After Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", https://arxiv.org/abs/1503.02531, where a
network is trained to repeat the outputs of another one; here a last layer is, for each task.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..functional import in_float32
from .taskwise import TaskwiseNetwork, class_means

__all__ = ["Distillation"]

_TEMPERATURE, _RIDGE, _STEPS, _FACTOR = 15.0, 0.1, 8, 2.0  # τ, λ; all chosen on validation classes of CIFAR-FS
_READ_AT_ONCE = 256


class Distillation(nn.Module):
    """The last layer 2V, and the bank.

    What both networks make of the bank are buffers: saved and loaded with the method, constants for gradients, and in
    the place of the samples where these are not there.

    Args:
        features: D, the features of the network.
        read: E, the features of the encoder.
        bank: B samples ``(B, *)``, or how many there were where a state will be loaded.
    """

    samples: Tensor | None
    read: Tensor
    features: Tensor

    def __init__(self, features: int, read: int, bank: Tensor | int) -> None:
        super().__init__()
        samples, size = (None, bank) if isinstance(bank, int) else (bank, len(bank))
        self.register_buffer("samples", samples, persistent=False)
        self.register_buffer("read", torch.zeros(size, read))
        self.register_buffer("features", torch.zeros(size, features))
        self._made_by: dict[str, Tensor] = {}  # the state of the network that made the features

    def forward(
        self, network: TaskwiseNetwork, encoder: TaskwiseNetwork, read: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weight ``(T, C, D)`` and bias ``(T, C)`` of T tasks.

        Args:
            network: what makes the features, in evaluation mode.
            encoder: what never changes.
            read: what the encoder makes of the support samples, ``(T, N, E)``.
            targets: ``(T, N, C)``.

        Raises:
            InputError: where neither samples nor features of them are there.
        """
        self._refresh(network, encoder)
        means, _ = class_means(F.normalize(read, dim=-1), targets)
        likeness = F.normalize(means, dim=-1) @ F.normalize(self.read, dim=-1).T.to(means.dtype)
        said = (_TEMPERATURE * likeness).softmax(1)  # (T, C, B)
        centre = self.features.to(said.dtype).mean(0)
        h = self.features.to(said.dtype) - centre
        scatter, start = h.T @ h, said.mean(-1, keepdim=True).log()
        ridge = _RIDGE * scatter.diagonal().mean() * torch.eye(len(scatter)).to(scatter)
        inverse = torch.linalg.inv(scatter + ridge)
        weight = said.new_zeros(*said.shape[:2], len(inverse))
        for _ in range(_STEPS):
            answered = (weight @ h.T + start).softmax(1)
            weight = weight + 2 * (said - answered) @ h @ inverse
        return _FACTOR * weight, -_FACTOR * weight @ centre

    @torch.no_grad()
    def _refresh(self, network: TaskwiseNetwork, encoder: TaskwiseNetwork) -> None:
        """Compute the features of the bank anew if the network has other weights than those that made them."""
        state = network.state_dict()
        if self.samples is not None and not _equal(state, self._made_by):
            self.features, self.read = _features(network, self.samples), _features(encoder, self.samples)
            self._made_by = {name: value.clone() for name, value in state.items()}
        if not self.features.any():
            raise InputError("expected the samples of the bank, got none; give bank=")


def _features(network: TaskwiseNetwork, samples: Tensor) -> Tensor:
    parts = (network(part.unsqueeze(0), track=False).features[0] for part in samples.split(_READ_AT_ONCE))
    return in_float32(torch.cat(list(parts)))


def _equal(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    pairs = ((value, other[name]) for name, value in state.items() if name in other)
    return len(state) == len(other) and all(a.device == b.device and torch.equal(a, b) for a, b in pairs)
