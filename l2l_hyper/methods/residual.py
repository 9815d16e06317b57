"""The residual of HyperAdapter: what a hypernetwork adds to a last layer, from what it reads of the support set."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..hypernet import Full, HyperNetwork, Target
from .class_attention import ClassAttention
from .modulation import root_mean_square
from .taskwise import class_means

__all__ = ["Generator", "Residual"]

Generator = Literal["attention", "linear", "mlp"]


class Residual(HyperNetwork):
    """Δ: what one linear map of the embeddings of the classes adds to a last layer.

    Args:
        features: D.
        read: E, the numbers that an encoder of the support set adds to the tokens of classes and samples, or 0.
        generator: what the embedding of a class is: "attention", what its token has read from the support set;
            "linear", the mean of its samples; "mlp", a hidden layer that reads this mean and the base learner's row.
        width: of the attention, or of the hidden layer.
        dropout: while training, on sample tokens and in the blocks, or on the hidden layer.
        **attention: ``blocks`` and ``heads``.
    """

    def __init__(
        self, features: int, read: int, generator: Generator, *, width: int, dropout: float, **attention: Any
    ) -> None:
        row = Target({"weight": (features,), "bias": ()})
        encoder: nn.Module
        if generator == "attention":
            encoder = ClassAttention(features + 1 + read, features + read, width=width, dropout=dropout, **attention)
        elif generator == "mlp":
            hidden = nn.Linear((read or features) + features + 1, width)
            encoder = nn.Sequential(hidden, nn.GELU(), nn.Dropout(dropout))
        else:
            encoder, width = nn.Identity(), read or features
        super().__init__(encoder, Full(width, row, init="zero"))
        self.reads = generator

    def forward(  # type: ignore[override]
        self, tokens: Tensor, read: Tensor | None, targets: Tensor, predictions: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Changes of the weight ``(T, C, D)`` and the bias ``(T, C)`` in their units, and the two units.

        Args:
            tokens: features ``(T, N, D)``.
            read: what the encoder makes of the samples, ``(T, N, E)``.
            targets: ``(T, N, C)``.
            predictions: of the base learner, ``(T, N, C)``.
            weight: of the base learner, ``(T, C, D)``.
            bias: of the base learner, ``(T, C)``.
        """
        unit, length = root_mean_square(weight), root_mean_square(tokens)
        bias_unit = (unit * length).squeeze(-1) * tokens.shape[-1] ** 0.5
        tokens, rows = tokens / length, torch.cat([weight / unit, (bias / bias_unit).unsqueeze(-1)], -1)
        if read is not None:
            read = read / root_mean_square(read)
        means = class_means(tokens if read is None else read, targets)[0]
        if self.reads == "linear":
            delta = self._made(means)
        elif self.reads == "mlp":
            delta = self._made(torch.cat([means, rows], -1))
        elif read is None:
            delta = self._made(rows, tokens, targets, predictions)
        else:
            delta = self._made(torch.cat([rows, means], -1), torch.cat([tokens, read], -1), targets, predictions)
        return (delta["weight"], delta["bias"]), (unit, bias_unit)

    def _made(self, *read: Tensor) -> dict[str, Tensor]:
        """What the hypernetwork makes in the precision of its own weights."""
        dtype = next(self.parameters()).dtype
        return super().forward(*(of.to(dtype) for of in read))
