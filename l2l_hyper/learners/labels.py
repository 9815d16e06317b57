"""Targets recovered from the derivative of a loss: ``adapt(loss)`` never shows the labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["recover_targets"]

_TOLERANCE = 1e-3  # of a target between 0 and 1; float32 leaves errors near 1e-6


@torch.no_grad()
def recover_targets(outputs: Tensor, delta: Tensor, loss: Tensor) -> tuple[Tensor, bool]:
    r"""Targets of a loss from :math:`\delta = \partial L/\partial o`.

    For cross-entropy :math:`\delta = s\,(\operatorname{softmax}(o) - t)`, with s = 1/N for the mean, 1 for the sum,
    and any positive number a sample for class weights or a scaled loss; t is one-hot, or smoothed with one
    :math:`\epsilon` for all. For squared error :math:`\delta = 2s\,(o - t)`, recognized by the value of the loss.
    For anything else the target is one step down the loss, :math:`o - N\delta`.

    Args:
        outputs: shape ``(N, C)``.
        delta: derivative of the loss by the outputs, shape ``(N, C)``.
        loss: the loss, a scalar.

    Returns:
        Targets of shape ``(N, C)`` (one-hot for cross-entropy, without the smoothing), and whether they are classes.

    Example:
        >>> outputs = torch.randn(4, 3, requires_grad=True)
        >>> loss = F.cross_entropy(outputs, torch.tensor([2, 0, 1, 1]), label_smoothing=0.1)
        >>> (delta,) = torch.autograd.grad(loss, outputs)
        >>> targets, classification = recover_targets(outputs, delta, loss)
        >>> targets.argmax(-1).tolist(), classification
        ([2, 0, 1, 1], True)
    """
    o, d, value = outputs.double(), delta.double(), loss.double()
    labels = _recover_labels(o.softmax(-1), d)
    if labels is not None:
        return F.one_hot(labels, outputs.shape[-1]).to(outputs.dtype), True
    squared = d.square().sum() / 4
    for scale in (1 / o.numel(), 1.0):
        if torch.isclose(value, squared / scale, rtol=1e-4, atol=1e-12):
            return (o - d / (2 * scale)).to(outputs.dtype), False
    return (outputs - len(outputs) * delta).detach(), False


def _recover_labels(p: Tensor, delta: Tensor) -> Tensor | None:
    """Labels if δ is that of a cross-entropy, else None."""
    if p.shape[-1] < 2:
        return None
    # Without smoothing the label is the one negative entry of a row, and the row says what its scale is, the better
    # the further its prediction is off.
    low, lowest = delta.min(-1, keepdim=True)
    lowest = torch.where(low < 0, lowest, p.argmax(-1, keepdim=True))
    miss = 1 - p.gather(-1, lowest)
    scale_of_row = -low / miss.clamp_min(1e-300)
    for scale in (1 / len(p), 1.0, scale_of_row[miss.argmax()]):
        targets = p - delta / scale
        top, labels = targets.max(-1, keepdim=True)
        rest = (1 - top) / (p.shape[-1] - 1)
        expected = rest.expand_as(targets).scatter(-1, labels, top)
        is_smoothed = (
            ((targets - expected).abs() < _TOLERANCE).all()
            and (rest > -_TOLERANCE).all()
            and (top - top[0]).abs().max() < _TOLERANCE
            and (top > rest + _TOLERANCE).all()
        )
        if is_smoothed:
            return labels.squeeze(-1)
    # Class weights give every row a scale of its own; a row that is right already has no derivative.
    right = miss < _TOLERANCE
    targets = p - torch.where(right, 0.0, delta / scale_of_row)
    one_hot = torch.zeros_like(targets).scatter(-1, lowest, 1.0)
    if ((low < 0) | right).all() and ((targets - one_hot).abs() < _TOLERANCE).all():
        return lowest.squeeze(-1)
    return None
