r"""A penalty that follows the loss of a plain script, which only knows a loss on the queries.

The engine minimises :math:`L + \gamma P`.  A script backpropagates :math:`\sum_i a_i L_i`, with whatever factors it has
for accumulation, meta-batches or reductions, and never sees P.  So P enters at the logits o of the queries, where the
derivative of a cross-entropy,

.. math:: \delta_n = a_n\,(\operatorname{softmax}(o_n) - t_n),

shows the factor of each sample: with t one-hot at class k, the one whose :math:`\delta` is negative,
:math:`a_n = \sum_{j \neq k} \delta_{nj} / \sum_{j \neq k} p_{nj}`.  The penalty is given
the derivative :math:`\sum_n a_n`: 1 for the mean, 1/16 for the mean over 16, N for the sum, and whatever share of the
whole a part of the queries has.  So its gradient is that of the same :math:`L + \gamma P` under the same factors.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from .loss_recovery import cross_entropy_scale

__all__ = ["Switch", "following_the_loss"]


class Switch:
    """Whether the outputs of a pass turned out to be queries': those that ``adapt`` reads are the support set's."""

    on = True


def following_the_loss(logits: Tensor, penalty: Tensor, switch: Switch) -> Tensor:
    """The same logits; what a cross-entropy of them sends back, it sends to the penalty, too.

    Args:
        logits: ``(N, C)`` of the queries.
        penalty: a scalar.
        switch: off, nothing is sent to the penalty.
    """
    return _Following.apply(logits, penalty, switch) if penalty.requires_grad else logits


class _Following(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, penalty: Tensor, switch: Switch) -> Tensor:
        ctx.save_for_backward(logits, penalty)
        ctx.switch = switch
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor | None, None]:
        if not ctx.switch.on:
            return delta, None, None
        logits, penalty = ctx.saved_tensors
        classes = logits.shape[-1]
        scale = cross_entropy_scale(*(of.detach().reshape(-1, classes) for of in (logits, delta)))  # a row per token
        if scale is None:
            warnings.warn(
                "the loss of the queries is not a cross-entropy of the outputs, so the penalty of the residual cannot "
                "be weighed against it and is left out; add learner.penalty() to the loss, or use penalty=0",
                stacklevel=2,
            )
            return delta, None, None
        return delta, torch.full_like(penalty, scale), None
