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

Generator = Literal["attention", "linear"]


class Residual(HyperNetwork):
    """Δ: what one linear map of the embeddings of the classes adds to a last layer.

    Args:
        features: D.
        read: E, the numbers that an encoder of the support set adds to the tokens of classes and samples, or 0.
        generator: "attention", or "linear" for class means in the place of what the attention makes of them.
        **attention: ``width``, ``blocks``, ``heads``, ``dropout``.
    """

    def __init__(self, features: int, read: int, generator: Generator, **attention: Any) -> None:
        row = Target({"weight": (features,), "bias": ()})
        if generator == "attention":
            encoder: nn.Module = ClassAttention(features + 1 + read, features + read, **attention)
            super().__init__(encoder, Full(attention["width"], row, init="zero"))
        else:
            super().__init__(nn.Identity(), Full(read or features, row, init="zero"))
        self.attends = generator == "attention"

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
        tokens = tokens / length
        means = None
        if read is not None:
            read = read / root_mean_square(read)
            means, _ = class_means(read, targets)
        if not self.attends:
            delta = self._made(class_means(tokens, targets)[0] if means is None else means)
            return (delta["weight"], delta["bias"]), (unit, bias_unit)
        rows = [weight / unit, (bias / bias_unit).unsqueeze(-1)]
        if read is not None and means is not None:
            rows, tokens = [*rows, means], torch.cat([tokens, read], -1)
        delta = self._made(torch.cat(rows, -1), tokens, targets, predictions)
        return (delta["weight"], delta["bias"]), (unit, bias_unit)

    def _made(self, *read: Tensor) -> dict[str, Tensor]:
        """What the hypernetwork makes in the precision of its own weights."""
        dtype = next(self.parameters()).dtype
        return super().forward(*(of.to(dtype) for of in read))
