"""Gradient steps on a support set: the inner loop of MAML and its kin, for T tasks at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["descend", "leaves"]


def descend(
    loss: Tensor, weights: Mapping[str, Tensor], lr: float, *, second_order: bool = True, allow_unused: bool = False
) -> dict[str, Tensor]:
    r"""One gradient step, :math:`w - \alpha\,\partial L/\partial w`, on every weight that requires a gradient.

    Args:
        loss: the sum over tasks of their losses, which depend on their own weights alone.
        weights: each task's own, by name.
        lr: inner learning rate α.
        second_order: whether the step stays differentiable.
        allow_unused: whether weights on which the loss does not depend stay as they are, rather than raise.

    Raises:
        InputError: for a weight on which the loss does not depend, unless ``allow_unused``.
    """
    learned = {name: w for name, w in weights.items() if w.requires_grad}
    try:
        gradients = torch.autograd.grad(
            loss, list(learned.values()), create_graph=second_order, retain_graph=True, allow_unused=allow_unused
        )
    except RuntimeError as error:
        raise InputError(
            f"expected outputs that depend on every adapted weight ({str(error).splitlines()[0]}); "
            "try allow_unused=True, or adapt fewer"
        ) from error
    pairs = zip(learned.items(), gradients, strict=True)
    return {**weights, **{n: torch.add(w, g, alpha=-lr) for (n, w), g in pairs if g is not None}}


def leaves(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values, cut off from where they come from; those that require gradients go on to do so."""
    return {name: w.detach().requires_grad_(w.requires_grad) for name, w in weights.items()}
