"""What a network showed on its support set: everything a start or a generator may read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Support"]


@dataclass(frozen=True)
class Support:
    """The support sets of T tasks, as the last linear layer of the network sees them.

    Attributes:
        features: inputs of the last layer, shape ``(T, N, D)``.
        targets: what the outputs should be, shape ``(T, N, C)``: one-hot classes, or values in regression.
        outputs: what they are under ``weights``, shape ``(T, N, C)``.
        delta: derivative of each task's loss by its outputs, shape ``(T, N, C)``.
        weights: the weights to be replaced, each with a leading task dimension.
        classification: whether ``targets`` are classes.
        second_order: whether gradients taken on the support set stay differentiable.
        allow_unused: whether weights that the outputs do not depend on stay as they are, rather than raise.
    """

    features: Tensor
    targets: Tensor
    outputs: Tensor
    delta: Tensor
    weights: dict[str, Tensor]
    classification: bool = True
    second_order: bool = True
    allow_unused: bool = False

    def predictions(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Outputs ``(T, N, C)`` under a last layer ``(T, C, D)``, ``(T, C)``: probabilities of classes, or values."""
        outputs = torch.baddbmm(bias.unsqueeze(-2), self.features, weight.transpose(-1, -2))
        return outputs.softmax(-1) if self.classification else outputs

    def class_means(self) -> tuple[Tensor, Tensor]:
        """Mean feature of each class, shape ``(T, C, D)``, and the number of its samples, shape ``(T, C, 1)``."""
        counts = self.targets.sum(-2).unsqueeze(-1)
        return self.targets.transpose(-1, -2) @ self.features / counts, counts
