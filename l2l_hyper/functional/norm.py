"""Batch normalization with declared statistics: right for one task, for a batch of tasks, and in second order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .. import kernels
from ..errors import InputError
from ..kernels import block
from ..kernels.plain import Normalized

__all__ = [
    "EpisodicBatchNorm",
    "Normalization",
    "Statistics",
    "convert_norm",
    "held_statistics",
    "hold_statistics",
    "moving_averages",
    "normalized_by",
    "statistics_of",
    "update_running",
]

Normalization = Literal["support", "transductive", "running"]
"""Which statistics a normalization layer uses, see :class:`EpisodicBatchNorm`."""

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance of the channels by name of the normalization layer; biased, but for running averages."""


@dataclass(frozen=True)
class _Pass:
    """What the layers of one forward pass are told and tell, by identity of the layer; see :func:`statistics_of`."""

    names: Mapping[int, str]
    given: Mapping[str, tuple[Tensor, Tensor]]
    recorded: Statistics = field(default_factory=dict)


_PASS: ContextVar[_Pass | None] = ContextVar("l2l_hyper_normalization", default=None)
_SHARED: ContextVar[Mapping[int, tuple[Tensor, Tensor]]] = ContextVar("l2l_hyper_shared_statistics")

moving_averages = Lock()
"""Held while running averages move, which all threads that run a network share: they move for one after the other."""


class EpisodicBatchNorm(nn.Module):
    r"""Batch normalization that says which samples its statistics come from.

    .. math:: y = \gamma \, (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta

    with one :math:`\mu, \sigma^2` per channel:

    - ``"support"``: of the support set.  They are computed when the support set passes and given back with
      :func:`statistics_of` when a query does, so a query's prediction does not depend on the other queries.  This is
      MetaBN of Bronskill et al. 2020, "TaskNorm: Rethinking Batch Normalization for Meta-Learning",
      https://arxiv.org/abs/2003.03284.
    - ``"transductive"``: of whatever batch passes, as learn2learn's MAML scripts do; queries see each other.
    - ``"running"``: of the batch while training, running averages in evaluation, as :class:`torch.nn.BatchNorm2d`,
      and always of the batch where that layer keeps no averages (``track_running_stats=False``).

    It is a layer of its own because second-order gradients through ``torch.func.vmap`` over
    :class:`torch.nn.BatchNorm2d` are silently wrong, and it never changes a buffer while it runs: under ``vmap`` each
    task has its own statistics, and :func:`update_running` takes them up afterwards.

    Args:
        channels: number of channels C.
        mode: one of the three above.
        eps: added to the variance.
        momentum: weight of a new batch in the running averages; ``None`` for a cumulative average, as in torch.

    Shape: ``(N, C)`` or ``(N, C, *)``, and the same out.

    Example:
        >>> norm = EpisodicBatchNorm(3)
        >>> x = torch.randn(50, 3, 8, 8)
        >>> y = norm(x)
        >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5)
        True
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    support_mean: Tensor | None
    support_var: Tensor | None

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
        self.register_buffer("support_mean", None)  # of the one task that a clone was adapted to
        self.register_buffer("support_var", None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` with the statistics of the declared mode."""

        def make(given: tuple[Tensor, Tensor] | None, recorded: bool) -> Normalized:
            return kernels.normalize(x, self.weight, self.bias, given, self.eps, recorded=recorded)

        return self._normalized(x.shape, make)

    def in_block(self, layers: Sequence[Any], x: Any) -> Tensor | None:
        """What a convolution, this layer, ReLU and max-pooling make of images, by a kernel for it, where it is faster.

        Args:
            layers: the four.
            x: images ``(N, C, H, W)``.
        """
        convolution, *_, pooling = layers
        if not block.fits(x, layers, self.weight, self.bias):
            return None

        def make(given: tuple[Tensor, Tensor] | None, recorded: bool) -> Normalized:
            return block.block(x, convolution, pooling, self.weight, self.bias, given, self.eps)

        return self._normalized(block.outputs(x, convolution), make)

    def _normalized(self, shape: torch.Size, make: Callable[..., Normalized]) -> Tensor:
        """What is made of samples of a shape with the statistics of the declared mode, or with their own."""
        now = _PASS.get()
        name = None if now is None else now.names.get(id(self))
        given, shared = None, _SHARED.get({}).get(id(self.running_mean))
        if self.mode == "running" and not self.training:
            given = self.running_mean, self.running_var
        elif self.mode == "running" and shared is not None:
            given = shared
        elif self.mode == "support" and now is not None and name is not None:
            given = now.given.get(name)
        elif self.support_mean is not None and self.support_var is not None:
            given = self.support_mean, self.support_var
        if given is None and shape.numel() == shape[1]:
            raise InputError(
                f"batch normalization of one value per channel is zero whatever it is, got {tuple(shape)}; give more "
                "samples at once, or use normalization='support', or 'running' with eval()"
            )
        recorded = given is None and now is not None and name is not None and self.mode != "transductive"
        y, mean, var = make(given, recorded)
        if recorded:
            samples = shape.numel() // shape[1]
            unbiased = samples / (samples - 1) if self.mode == "running" else 1  # as torch keeps it in running averages
            now.recorded[name] = mean, unbiased * var  # type: ignore[union-attr, index]
        return y

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("support_mean", "support_var"):  # there only in the state of an adapted clone
            value = state_dict.get(prefix + name)
            self._buffers[name] = None if value is None else torch.empty_like(self.running_mean)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Channels and mode, for ``repr``."""
        return f"{self.running_mean.numel()}, mode={self.mode!r}, eps={self.eps}"


def convert_norm(module: nn.Module, mode: Normalization, *, declared: bool = True) -> nn.Module:
    """Replace every BatchNorm layer in ``module`` by an :class:`EpisodicBatchNorm` that keeps its tensors.

    Works in place and returns the module (or the new layer where the module itself is a BatchNorm layer).  Affine
    parameters stay the same tensors, so an optimizer or a state dict made before still fits.

    Args:
        module: any module.
        mode: "support", "transductive" or "running".
        declared: whether layers that have a mode already take this one.

    Raises:
        InputError: if ``mode`` is not one of the three.

    Example:
        >>> convert_norm(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), "support")[1]
        EpisodicBatchNorm(4, mode='support', eps=1e-05)
    """
    _checked(mode)
    if isinstance(module, EpisodicBatchNorm) and declared:
        module.mode = mode
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        tracked = mode != "running" or module.running_mean is not None
        norm = EpisodicBatchNorm(
            module.num_features, mode if tracked else "transductive", eps=module.eps, momentum=module.momentum
        )
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
        setattr(module, name, convert_norm(child, mode, declared=declared))
    return module


@contextmanager
def statistics_of(module: nn.Module, statistics: Mapping[str, tuple[Tensor, Tensor]] | None) -> Iterator[Statistics]:
    """Within the block, ``"support"`` layers of ``module`` use these statistics; ``None`` lets each compute its own.

    The layers are told through a context variable, so other threads are not concerned.

    Args:
        module: a module with :class:`EpisodicBatchNorm` layers.
        statistics: mean and variance by name of the layer.

    Yields:
        Mean and variance by name of the layer, of the layers that have computed their own so far; but for
        ``"transductive"`` ones, whose statistics no later pass uses.
    """
    names = {id(m): name for name, m in module.named_modules() if isinstance(m, EpisodicBatchNorm)}
    now = _Pass(names, statistics or {})
    token = _PASS.set(now)
    try:
        yield now.recorded
    finally:
        _PASS.reset(token)


def hold_statistics(module: nn.Module, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Put the statistics of one support set into the ``"support"`` layers, as buffers."""
    for name, (mean, var) in statistics.items():
        norm = module.get_submodule(name)
        if isinstance(norm, EpisodicBatchNorm) and norm.mode == "support":
            norm.support_mean, norm.support_var = mean, var


def held_statistics(module: nn.Module) -> Statistics:
    """What :func:`hold_statistics` put there."""
    norms = ((name, m) for name, m in module.named_modules() if isinstance(m, EpisodicBatchNorm))
    return {
        name: (m.support_mean, m.support_var)
        for name, m in norms
        if m.support_mean is not None and m.support_var is not None
    }


@contextmanager
def normalized_by(module: nn.Module, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within the block the ``"running"`` layers of ``module`` normalize by given statistics, also in training.

    Args:
        module: a module with :class:`EpisodicBatchNorm` layers.
        statistics: mean and variance ``(C,)`` by name of the layer.
    """
    # A layer and the copies of it that passes under other weights make have one and the same running average.
    averages = {id(module.get_submodule(name).running_mean): values for name, values in statistics.items()}
    token = _SHARED.set(averages)
    try:
        yield
    finally:
        _SHARED.reset(token)


@torch.no_grad()
def update_running(module: nn.Module, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Take the statistics of T tasks, of shape ``(T, C)``, into the running averages of ``"running"`` layers.

    Only layers in training mode change.  The variance of the pooled batch is the mean of the tasks' variances plus the
    variance of their means.  Several threads may train with one module: the averages take up the batches one after the
    other, each of them whole, in the order in which they come.
    """
    with moving_averages:
        for name, (mean, var) in statistics.items():
            norm = module.get_submodule(name)
            if not isinstance(norm, EpisodicBatchNorm) or norm.mode != "running" or not norm.training:
                continue
            pooled_var = var.mean(0) + mean.var(0, correction=0)
            norm.num_batches_tracked += 1
            momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.mean(0).to(norm.running_mean.dtype), momentum)
            norm.running_var.lerp_(pooled_var.to(norm.running_var.dtype), momentum)


def _checked(mode: str) -> Normalization:
    if mode not in get_args(Normalization):
        raise InputError(f"normalization must be one of {', '.join(get_args(Normalization))}, got {mode!r}")
    return mode  # type: ignore[return-value]
