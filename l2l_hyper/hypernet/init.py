"""Variance-preserving initialization of generated weights (Chang et al. 2020)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from .target import Target

__all__ = ["gains", "hyperfan_std", "unit_linear_"]

VECTOR_STD = 0.1  # of what is no bias of a generated matrix


def hyperfan_std(target: Target, mode: Literal["in", "out"] = "in", *, relu: bool = True) -> Tensor:
    r"""Standard deviation that each generated parameter should have for the generated network to keep its variance.

    A layer with weight of shape ``(out, in, *kernel)`` keeps the variance of its activations (``mode="in"``) or of its
    gradients (``mode="out"``) if :math:`\operatorname{Var} W = g / \text{fan}`, with :math:`g = 2` before a ReLU and 1
    otherwise.  A generated bias takes half of that variance: then the weight contributes :math:`g/2` and the bias
    :math:`g/2`, and together they preserve it, as in Chang et al. 2020, "Principled Weight Initialization for
    Hypernetworks", https://openreview.net/forum?id=H1lma24tPB (their hyperfan-in and hyperfan-out).

    A vector that is no bias of a generated matrix, such as the gain and the shift of a normalization layer, has a
    standard deviation of 0.1.

    Args:
        target: the generated parameters.
        mode: which variance is kept.
        relu: whether ReLUs follow the layers.

    Returns:
        A vector of shape ``(target.numel,)``.

    Raises:
        InputError: if ``mode`` is neither "in" nor "out".

    Example:
        >>> hyperfan_std(Target({"weight": (2, 8)}), relu=False)[0].pow(-2).round()
        tensor(8.)
    """
    if mode not in ("in", "out"):
        raise InputError(f"mode must be 'in' or 'out', got {mode!r}")
    gain = 2.0 if relu else 1.0
    parts = []
    for name, shape in target.shapes.items():
        if len(shape) < 2 and not _is_bias(name, target):
            variance = VECTOR_STD**2
        elif len(shape) < 2:
            # Only hyperfan-in shares the variance: a bias adds to activations, never to gradients.
            variance = gain / 2 if mode == "in" else 0.0
        else:
            fan = math.prod(shape[1:]) if mode == "in" else shape[0] * math.prod(shape[2:])
            has_bias = f"{name.removesuffix('weight')}bias" in target.shapes
            variance = gain / fan / (2 if mode == "in" and has_bias else 1)
        parts.append(torch.full((math.prod(shape),), math.sqrt(variance)))
    return torch.cat(parts)


def gains(target: Target) -> Tensor:
    """1 where a generated parameter is the gain of a normalization layer, a vector that is called weight; 0 elsewhere.

    Returns:
        A vector of shape ``(target.numel,)``.
    """
    is_gain = [len(shape) == 1 and name.rpartition(".")[2] == "weight" for name, shape in target.shapes.items()]
    sizes = [math.prod(shape) for shape in target.shapes.values()]
    return torch.cat([torch.full((size,), float(one)) for size, one in zip(sizes, is_gain, strict=True)])


def _is_bias(name: str, target: Target) -> bool:
    """Whether a vector is the bias of a generated matrix."""
    weight = target.shapes.get(f"{name.removesuffix('bias')}weight")
    return name.endswith("bias") and weight is not None and len(weight) > 1


@torch.no_grad()
def unit_linear_(linear: nn.Linear, input_variance: float = 1.0) -> nn.Linear:
    """Initialize a linear layer so that inputs of mean square ``input_variance`` give outputs of variance 1."""
    linear.weight.normal_(0, 1 / math.sqrt(linear.in_features * input_variance))
    if linear.bias is not None:
        linear.bias.zero_()
    return linear
