"""The normalization of a batch in elementary operations, right under ``vmap`` and in any derivative."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Normalized", "normalize"]

Normalized = tuple[Tensor, Tensor, Tensor]
"""The normalized batch, and the mean and the (biased) variance of its channels."""


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, given: tuple[Tensor, Tensor] | None, eps: float
) -> Normalized:
    r"""Normalize a batch by its own mean and (biased) variance, or by those given.

    .. math:: y = \gamma \, (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta

    Args:
        x: the batch, shape ``(N, C, *)``.
        weight: factors γ of the channels, shape ``(C,)``, or ``None``.
        bias: what is added to them, shape ``(C,)``, or ``None``.
        given: mean and variance of the channels, ``(C,)`` each, if not those of the batch.
        eps: added to the variance.
    """
    # With the channels last a convolution's output is a matrix as it lies, and its columns reduce several times
    # faster than the axes of an image.
    rows = x.movedim(1, -1)
    shape = rows.shape
    rows = rows.flatten(0, -2)
    if rows.dtype in (torch.bfloat16, torch.float16):  # within autocast: too few digits for a variance
        rows = rows.float()
    # Of the ways to write this, the one whose derivatives pass over the activations least often.
    mean = rows.sum(0) / len(rows) if given is None else given[0]
    centered = rows + -mean
    var = torch.linalg.vecdot(centered, centered, dim=0) / len(rows) if given is None else given[1]
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    y = centered * scale
    if bias is not None:
        y = y + bias
    return y.to(x.dtype).unflatten(0, shape[:-1]).movedim(-1, 1), mean, var
