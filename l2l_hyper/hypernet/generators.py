"""Generators: an embedding to weights, or to what is added to weights that are there already."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from .init import gains, hyperfan_std, unit_linear_
from .target import Target

__all__ = ["Chunked", "FeatureWise", "Full", "Generator", "LowRank", "Sum"]

Init = Literal["hyperfan-in", "hyperfan-out", "zero"]


class Generator(nn.Module):
    """Base of the generators: ``(*, E)`` to ``{name: (*, *shape)}``.

    With ``init="hyperfan-in"`` or ``"hyperfan-out"`` the generated weights have the variance that
    :func:`~l2l_hyper.hypernet.hyperfan_std` asks for, given embeddings of mean square ``input_variance``, and gains of
    normalization layers the mean 1; with ``init="zero"`` they are zero, which is the choice for a residual on weights
    that exist.
    """

    std: Tensor
    mean: Tensor

    def __init__(self, target: Target, init: Init) -> None:
        super().__init__()
        if init not in ("hyperfan-in", "hyperfan-out", "zero"):
            raise InputError(f"init must be 'hyperfan-in', 'hyperfan-out' or 'zero', got {init!r}")
        self.target = target
        self.init = init
        std = (
            torch.ones(target.numel) if init == "zero" else hyperfan_std(target, "in" if init.endswith("in") else "out")
        )
        self.register_buffer("std", std)
        self.register_buffer("mean", gains(target) * (init != "zero"), persistent=False)

    def _start_linear(self, linear: nn.Linear, input_variance: float) -> nn.Linear:
        unit_linear_(linear, input_variance)
        if self.init == "zero":
            nn.init.zeros_(linear.weight)
        return linear

    def _weights(self, vector: Tensor) -> dict[str, Tensor]:
        """Weights of a vector of variance 1, which is overwritten: it may be all of a network."""
        return self.target.unflatten(vector.mul_(self.std).add_(self.mean))

    def forward(self, embedding: Tensor, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Weights for each embedding; ``base`` are the weights they will be added to, for those that need them."""
        raise NotImplementedError


class Full(Generator):
    """One linear map from the embedding to every generated weight: E × numel parameters."""

    def __init__(
        self, in_features: int, target: Target, *, init: Init = "hyperfan-in", input_variance: float = 1.0
    ) -> None:
        super().__init__(target, init)
        self.linear = self._start_linear(nn.Linear(in_features, target.numel), input_variance)

    def forward(self, embedding: Tensor, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Weights of shapes ``(*, *shape)`` from embeddings ``(*, E)``."""
        return self._weights(self.linear(embedding))


class Chunked(Generator):
    """Chunks of the weights from one small network that also reads a learned embedding of the chunk.

    Its hidden layer has ``width`` units; with ``width=None`` there is none, and chunks are linear in what is read.

    See von Oswald et al. 2020, "Continual learning with hypernetworks", https://arxiv.org/abs/1906.00695.
    """

    def __init__(
        self,
        in_features: int,
        target: Target,
        *,
        chunk: int = 512,
        chunk_features: int = 16,
        width: int | None = 64,
        init: Init = "hyperfan-in",
        input_variance: float = 1.0,
    ) -> None:
        super().__init__(target, init)
        if chunk < 1:
            raise InputError(f"chunk must be at least 1, got {chunk}")
        self.chunks = nn.Parameter(torch.randn(math.ceil(target.numel / chunk), chunk_features) * input_variance**0.5)
        read = in_features + chunk_features
        self.hidden = None if width is None else unit_linear_(nn.Linear(read, width), input_variance)
        # A ReLU halves the mean square of its unit-variance input.
        last, variance = (read, input_variance) if width is None else (width, 0.5)
        self.linear = self._start_linear(nn.Linear(last, chunk), variance)

    def forward(self, embedding: Tensor, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Weights of shapes ``(*, *shape)`` from embeddings ``(*, E)``."""
        batch = embedding.shape[:-1]
        each = embedding.unsqueeze(-2).expand(*batch, len(self.chunks), -1)
        read = torch.cat([each, self.chunks.expand(*batch, *self.chunks.shape)], -1)
        hidden = read if self.hidden is None else torch.relu(self.hidden(read))
        vector = self.linear(hidden).flatten(-2)[..., : self.target.numel]
        return self._weights(vector)


class LowRank(Generator):
    r"""Every weight matrix as :math:`U V^\top` of a given rank, with biases in full.

    A kernel of shape ``(out, in, h, w)`` is taken as the matrix ``(out, in·h·w)``.
    """

    def __init__(
        self,
        in_features: int,
        target: Target,
        *,
        rank: int = 4,
        init: Init = "hyperfan-in",
        input_variance: float = 1.0,
    ) -> None:
        super().__init__(target, init)
        if rank < 1:
            raise InputError(f"rank must be at least 1, got {rank}")
        self.rank = rank
        left = {n: (s[0], rank) if len(s) > 1 else s for n, s in target.shapes.items()}
        right = {n: (math.prod(s[1:]), rank) for n, s in target.shapes.items() if len(s) > 1}
        self._left = Target(left)
        self._right = Target(right) if right else None
        self.left = self._start_linear(nn.Linear(in_features, self._left.numel), input_variance)
        self.right = (
            unit_linear_(nn.Linear(in_features, self._right.numel), input_variance) if self._right is not None else None
        )

    def forward(self, embedding: Tensor, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Weights of shapes ``(*, *shape)`` from embeddings ``(*, E)``."""
        weights = self._left.unflatten(self.left(embedding))
        if self.right is not None and self._right is not None:
            for name, v in self._right.unflatten(self.right(embedding)).items():
                matrix = weights[name] @ v.transpose(-1, -2) / self.rank**0.5
                weights[name] = matrix.reshape(*embedding.shape[:-1], *self.target.shapes[name])
        return self._weights(self.target.flatten(weights))


class FeatureWise(Generator):
    r"""Feature-wise affine change of weights that exist: one scale an output feature, and a shift for biases.

    :math:`\Delta W_o = \gamma_o W_o` and :math:`\Delta b_o = \gamma_o b_o + \beta_o`; a change of the layer's output
    as in Perez et al. 2018, "FiLM", https://arxiv.org/abs/1709.07871.
    """

    def __init__(self, in_features: int, target: Target) -> None:
        super().__init__(target, "zero")
        gains = {f"{name}.gain": shape[:1] for name, shape in target.shapes.items()}
        shifts = {f"{name}.shift": shape for name, shape in target.shapes.items() if len(shape) == 1}
        self._parts = Target({**gains, **shifts})
        self.linear = self._start_linear(nn.Linear(in_features, self._parts.numel), 1.0)

    def forward(self, embedding: Tensor, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Changes of shapes ``(*, *shape)`` from embeddings ``(*, E)`` and base weights ``(*, *shape)``."""
        if base is None:
            raise InputError("a feature-wise generator changes weights: it needs base weights, got none; try LowRank")
        parts = self._parts.unflatten(self.linear(embedding))
        changes = {}
        for name, shape in self.target.shapes.items():
            gain = parts[f"{name}.gain"]
            changes[name] = base[name] * gain.reshape(*gain.shape, *(1,) * (len(shape) - 1))
            if len(shape) == 1:
                changes[name] = changes[name] + parts[f"{name}.shift"]
        return changes


class Sum(Generator):
    """The changes of several generators added, such as feature-wise ones and a low-rank one of the matrices."""

    def __init__(self, *generators: Generator) -> None:
        super().__init__(Target({n: s for g in generators for n, s in g.target.shapes.items()}), "zero")
        self.generators = nn.ModuleList(generators)

    def forward(self, embedding: Tensor, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Changes of shapes ``(*, *shape)`` from embeddings ``(*, E)`` and base weights ``(*, *shape)``."""
        changes: dict[str, Tensor] = {}
        for generator in self.generators:
            for name, change in generator(embedding, base).items():
                changes[name] = changes[name] + change if name in changes else change
        return changes
