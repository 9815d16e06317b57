"""Normalization with declared statistics: right for a task alone, for a batch of tasks, and in second order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError
from .conv import made_by
from .fold import folded, folds
from .normalize import normalize

__all__ = [
    "Normalization",
    "TaskNorm",
    "convert_norm",
    "statistics_of",
    "update_running",
]

Normalization = Literal["support", "transductive", "running"]
"""Which statistics a normalization layer uses, see :class:`TaskNorm`."""


class _Pass(NamedTuple):
    """What a layer is told of the forward pass it takes part in, see :func:`statistics_of`."""

    given: tuple[Tensor, Tensor] | None = None
    record: Callable[[tuple[Tensor, Tensor]], None] | None = None
    second_order: bool = True


_ALONE = _Pass()


class TaskNorm(nn.Module):
    r"""Batch normalization that says which samples its statistics come from.

    .. math:: y = \gamma \, (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta

    with one :math:`\mu, \sigma^2` a channel:

    - ``"support"``: of the support set.  They are computed when the support set passes and given back with
      :func:`statistics_of` when a query does, so a query's prediction does not depend on the other queries.
    - ``"transductive"``: of whatever batch passes, as learn2learn's MAML scripts do; queries see each other.
    - ``"running"``: of the batch while training, running averages in evaluation, as :class:`torch.nn.BatchNorm2d`.

    It is a layer of its own because second-order gradients through ``torch.func.vmap`` over
    :class:`torch.nn.BatchNorm2d` are silently wrong, and it never changes a buffer while it runs: under ``vmap`` each
    task has its own statistics, and :func:`update_running` takes them up afterwards.

    See Bronskill et al. 2020, "TaskNorm: Rethinking Batch Normalization for Meta-Learning",
    https://arxiv.org/abs/2003.03284.

    Args:
        channels: number of channels C.
        mode: one of the three above.
        eps: added to the variance.
        momentum: weight of a new batch in the running averages; ``None`` for a cumulative average, as in torch.

    Shape: ``(N, C)`` or ``(N, C, *)``, and the same out.

    Example:
        >>> norm = TaskNorm(3)
        >>> x = torch.randn(50, 3, 8, 8)
        >>> y = norm(x)
        >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5)
        True
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, channels: int, mode: Normalization = "support", *, eps: float = 1e-5, momentum: float | None = 0.1
    ) -> None:
        super().__init__()
        self.mode = _checked(mode)
        self.eps = eps
        self.momentum = momentum
        self.weight: nn.Parameter | None = nn.Parameter(torch.ones(channels))
        self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self._pass = _ALONE

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` with the statistics of the declared mode."""
        given, record, second_order = self._pass
        if self.mode == "running" and not self.training:
            given = self.running_mean, self.running_var
        if given is not None:
            record = None
        convolution = made_by(x)
        if convolution is not None and folds(convolution):
            y, *own = folded(convolution, self.weight, self.bias, given, self.eps)
        else:
            recorded = record is not None
            y, *own = normalize(
                x, self.weight, self.bias, given, self.eps, second_order=second_order, recorded=recorded
            )
        if record is not None:
            record((own[0], own[1]))
        return y

    def extra_repr(self) -> str:
        """Channels and mode, for ``repr``."""
        return f"{self.running_mean.numel()}, mode={self.mode!r}, eps={self.eps}"


def convert_norm(module: nn.Module, mode: Normalization) -> nn.Module:
    """Replace every BatchNorm layer in ``module`` by a :class:`TaskNorm` that keeps its parameters and buffers.

    Works in place and returns the module (or the new layer where the module itself is a BatchNorm layer).  Affine
    parameters stay the same tensors, so an optimizer or a state dict made before still fits.

    Raises:
        InputError: if ``mode`` is not one of the three.

    Example:
        >>> convert_norm(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), "support")[1]
        TaskNorm(4, mode='support', eps=1e-05)
    """
    _checked(mode)
    if isinstance(module, TaskNorm):
        module.mode = mode
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        norm = TaskNorm(module.num_features, mode, eps=module.eps, momentum=module.momentum)
        norm.weight, norm.bias = module.weight, module.bias
        device = next((t.device for t in (module.weight, module.running_mean) if t is not None), None)
        norm.to(device)
        if module.running_mean is not None and module.running_var is not None:
            norm.running_mean, norm.running_var = module.running_mean, module.running_var
            if module.num_batches_tracked is not None:
                norm.num_batches_tracked = module.num_batches_tracked
        norm.train(module.training)
        return norm
    for name, child in module.named_children():
        setattr(module, name, convert_norm(child, mode))
    return module


@contextmanager
def statistics_of(
    module: nn.Module, statistics: Mapping[str, tuple[Tensor, Tensor]] | None, *, second_order: bool = True
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Within the block, ``"support"`` layers use these statistics; ``None`` lets each compute its own.

    Args:
        module: a module with :class:`TaskNorm` layers.
        statistics: mean and variance by name of the layer.
        second_order: whether gradients of gradients are to be fast; they are right in either case.

    Yields:
        Mean and (biased) variance by name of the layer, of the layers that have computed their own so far; but for
        ``"transductive"`` ones, whose statistics no later pass uses.
    """
    norms = [(name, m) for name, m in module.named_modules() if isinstance(m, TaskNorm)]
    recorded: dict[str, tuple[Tensor, Tensor]] = {}
    for name, norm in norms:
        given = statistics.get(name) if statistics is not None and norm.mode == "support" else None
        record = None if norm.mode == "transductive" else partial(recorded.__setitem__, name)
        norm._pass = _Pass(given, record, second_order)
    try:
        yield recorded
    finally:
        for _, norm in norms:
            norm._pass = _ALONE


@torch.no_grad()
def update_running(module: nn.Module, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Take the statistics of T tasks, of shape ``(T, C)``, into the running averages of ``"running"`` layers.

    Only layers in training mode change.  The variance of the pooled batch is the mean of the tasks' variances plus the
    variance of their means.
    """
    for name, (mean, var) in statistics.items():
        norm = module.get_submodule(name)
        if not isinstance(norm, TaskNorm) or norm.mode != "running" or not norm.training:
            continue
        pooled_var = var.mean(0) + mean.var(0, correction=0)
        norm.num_batches_tracked += 1
        momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.mean(0), momentum)
        norm.running_var.lerp_(pooled_var, momentum)


def _checked(mode: str) -> Normalization:
    if mode not in get_args(Normalization):
        raise InputError(f"normalization must be one of {', '.join(get_args(Normalization))}, got {mode!r}")
    return mode  # type: ignore[return-value]
