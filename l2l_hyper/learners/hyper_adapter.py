"""HyperAdapter: a hypernetwork reads the support set and writes the last layer, W = start + Δ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..hypernet import (
    STARTS,
    BodyResidual,
    ClassAttention,
    FeatureWise,
    Full,
    Generator,
    HeadResidual,
    LowRank,
    SetAttention,
    Sum,
    Support,
    Target,
)
from ..nn import Normalization
from .base import Learner

__all__ = ["HyperAdapter"]


class HyperAdapter(Learner):
    r"""Hypernetwork adaptation in the place of ``l2l.algorithms.MAML``.

    The weights of a task with support set S are a closed-form start plus a learned residual,

    .. math:: W(S) = \operatorname{start}(S) + \Delta_\theta(S)

    where Δ comes from attention of class tokens to the support samples and to each other.  It starts at zero, so an
    untrained learner is its start exactly; it is equivariant to relabelling the classes, does not depend on the order
    of the support samples, and takes any number of ways and shots.

    Args:
        model: any network whose last layer is an ``nn.Linear``; a bare ``nn.Linear`` head too.
        lr: inner learning rate, used by ``start="gradient"``; accepted by the others so that MAML's arguments fit.
        first_order: whether gradients taken on the support set are constants.
        allow_unused: whether generated weights on which the outputs do not depend are accepted.
        allow_nograd: whether frozen generated weights are accepted; they stay as they are.
        start: "gaussian", "prototype", "ridge", "gradient" or "base", see :mod:`l2l_hyper.hypernet.starts`.
        generate: shell patterns of the parameters that are generated besides the last layer, such as
            ``["features.*"]``.
        residual: ``False`` leaves Δ out: the learner is its start, with what that learns.
        change: how parameters besides the last layer are changed, "feature-wise", "low-rank", or "both": feature-wise,
            and the matrices and kernels by a low-rank one added to it.
        width: width of the hypernetwork.
        blocks: blocks of attention.
        heads: attention heads.
        dropout: on the sample tokens and in the blocks, while training.
        scale: size of Δ relative to the start's weights.
        penalty: weight of the mean of ``Δ²``, relative to the start's weights.  It is added to the gradient when a
            query loss is propagated back, once a task, so that scripts which know nothing of it are regularized too;
            it does not show in the loss.
        normalization: what BatchNorm layers of the model compute their statistics from.  The default is what they do
            under MAML in learn2learn's scripts, so that a swap changes one thing; with "support" a query's prediction
            does not depend on the other queries.

    Raises:
        InputError: if the model has no final linear layer, or an argument is not one of its choices.

    Example:
        >>> from torch.nn.functional import cross_entropy
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> hyper = HyperAdapter(model, lr=0.1)
        >>> x, y = torch.randn(10, 4), torch.arange(5).repeat(2)
        >>> learner = hyper.clone()
        >>> learner.adapt(cross_entropy(learner(x), y))
        >>> cross_entropy(learner(x), y).backward()
        >>> all(p.grad is not None for p in hyper.parameters())
        True
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.5,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = False,
        *,
        start: str = "gaussian",
        generate: str | Sequence[str] = (),
        residual: bool = True,
        change: Literal["feature-wise", "low-rank", "both"] = "feature-wise",
        width: int = 128,
        blocks: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        scale: float = 0.2,
        penalty: float = 1.0,
        normalization: Normalization = "transductive",
    ) -> None:
        super().__init__(
            model,
            normalization=normalization,
            first_order=first_order,
            allow_unused=allow_unused,
            allow_nograd=allow_nograd,
        )
        if start not in STARTS:
            raise InputError(f"start must be one of {', '.join(STARTS)}, got {start!r}")
        if change not in _CHANGES:
            raise InputError(f"change must be one of {', '.join(_CHANGES)}, got {change!r}")
        self.lr, self.scale, self.penalty = lr, scale, penalty
        prefix = f"{self.head_name}." if self.head_name else ""
        head = (f"{prefix}weight", f"{prefix}bias")
        features = self.head.in_features
        _own_head(self.head, trained=STARTS[start].uses_base)
        body = [n for n in Target.of(self.module, generate).shapes if n not in head] if generate else []
        self.generated = (*head, *body)
        self.start = STARTS[start](self.generated, features, lr)
        self.start_takes_gradients = self.start.uses_gradient
        self.needs_every_class = self.start.needs_classes
        self.hyper = self.hyper_body = None
        if residual:
            encoder = ClassAttention(features + 1, features, width=width, blocks=blocks, heads=heads, dropout=dropout)
            row = Target({"weight": (features,), "bias": ()})
            self.hyper = HeadResidual(encoder, Full(width, row, init="zero"))
        if residual and body:
            shapes = {name: p.shape for name, p in self.module.named_parameters() if name in body}
            pooled = SetAttention(features, width, width=width, blocks=blocks, heads=heads, dropout=dropout)
            self.hyper_body = BodyResidual(pooled, _CHANGES[change](width, shapes))

    def update(
        self, support: Support, observe: Callable[[dict[str, Tensor]], Support], first: bool
    ) -> dict[str, Tensor]:
        """The start (the first time, or a further gradient step), then the residual."""
        ways, own = support.targets.shape[-1], support.outputs.shape[-1]
        if first and self.start.uses_base and ways != own:
            raise InputError(
                f"{type(self.start).__name__} begins at the network's own last layer, which has {own} outputs, got a "
                f"task of {ways} ways; build the model for as many, or use start='gaussian', 'prototype' or 'ridge'"
            )
        if self.hyper_body is not None and first:
            support = observe({**support.weights, **self._change_body(self.hyper_body, support)})
        weights = self.start(support) if first or self.start.uses_gradient else support.weights
        return weights if self.hyper is None else {**weights, **self._change_head(self.hyper, support, weights)}

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what makes the weights, see :func:`torch.compile` for the arguments; the network stays as it is.

        A start that takes gradients does, too.
        """
        for part in (None if self.start.uses_gradient else self.start, self.hyper, self.hyper_body):
            if part is not None:
                part.compile(*args, **kwargs)

    def _change_head(self, hyper: HeadResidual, support: Support, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        names = self.generated[:2]
        changes, units = hyper(support, *(weights[name] for name in names))
        return {
            name: weights[name] + unit * self._scaled(change)
            for name, change, unit in zip(names, changes, units, strict=True)
        }

    def _change_body(self, hyper: BodyResidual, support: Support) -> dict[str, Tensor]:
        base = {name: support.weights[name] for name in hyper.target.shapes}
        return {name: base[name] + self._scaled(change) for name, change in hyper(support.features, base).items()}

    def _scaled(self, change: Tensor) -> Tensor:
        return self.scale * _penalized(change, self.penalty * self.scale**2)


Shapes = dict[str, torch.Size]


def _feature_wise(width: int, shapes: Shapes) -> Generator:
    return FeatureWise(width, Target(shapes))


def _low_rank(width: int, shapes: Shapes) -> Generator:
    return LowRank(width, Target(shapes), init="zero")


def _both(width: int, shapes: Shapes) -> Generator:
    matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    first = _feature_wise(width, shapes)
    return Sum(first, _low_rank(width, matrices)) if matrices else first


_CHANGES = {"feature-wise": _feature_wise, "low-rank": _low_rank, "both": _both}


def _own_head(head: nn.Linear, *, trained: bool) -> None:
    """Give the layer a bias; make both buffers where the start computes them, as no gradient would ever reach them."""
    if head.bias is None:
        head.bias = nn.Parameter(head.weight.new_zeros(head.out_features))
    if not trained:
        for name in ("weight", "bias"):
            value = head._parameters.pop(name)
            head.register_buffer(name, None if value is None else value.detach())


def _penalized(delta: Tensor, weight: float) -> Tensor:
    """The same tensor; its gradient gains that of ``weight`` times the mean square of each task (first dimension)."""
    if weight and delta.requires_grad:
        value = delta.detach()
        per_task = delta[0].numel()
        delta.register_hook(lambda grad: grad + 2 * weight / per_task * value)
    return delta
