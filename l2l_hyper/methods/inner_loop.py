"""Gradient steps on a support set: the inner loop of MAML and its kin, for T tasks at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from ..data.episode import SupportSet
from ..errors import InputError
from .taskwise import Pass, TaskwiseNetwork

__all__ = ["descend", "inner_loop", "leaves", "require_gradients"]


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
    require_gradients()
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


def require_gradients() -> None:
    """Raise :class:`InputError` in inference mode, in which nothing has a gradient."""
    if torch.is_inference_mode_enabled():
        raise InputError(
            "expected a mode in which steps down the loss of a support set can be taken, got torch.inference_mode(); "
            "use torch.no_grad(), or a base learner in closed form"
        )


def inner_loop(
    network: TaskwiseNetwork,
    support: SupportSet,
    seen: Pass,
    weights: dict[str, Tensor],
    *,
    lr: float,
    steps: int,
    second_order: bool,
    allow_unused: bool,
) -> tuple[dict[str, Tensor], Pass]:
    """Gradient steps on T tasks, and the pass before the last; features are made once where only the head changes.

    Args:
        network: the network.
        support: the support sets.
        seen: their pass under ``weights``.
        weights: each task's own, by name.
        lr: inner learning rate α.
        steps: how many.
        second_order: whether the steps stay differentiable.
        allow_unused: see :func:`descend`.
    """
    head = network.head_names
    for step in range(steps):
        if step and len(weights) > len(head):
            seen = network(support.x, weights, track=False)
        elif step:
            seen = seen._replace(logits=vmap(F.linear)(seen.features, *(weights[name] for name in head)))
        loss = support.loss(seen.logits, support.rows).sum()
        weights = descend(loss, weights, lr, second_order=second_order, allow_unused=allow_unused)
    return weights, seen


def leaves(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values, cut off from where they come from; those that require gradients go on to do so."""
    return {name: w.detach().requires_grad_(w.requires_grad) for name, w in weights.items()}
