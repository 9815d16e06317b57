r"""Convolution, normalization, ReLU and max-pooling of many images on a CPU, a few images at a time.

ReLU increases, and so does the normalization where its factor :math:`\gamma` is not negative, so the maximum may be
taken before them:

.. math:: \max \operatorname{relu}\bigl(\gamma\,(y - \mu)/\sigma + \beta\bigr)
          = \operatorname{relu}\bigl(\gamma\,(\max y - \mu)/\sigma + \beta\bigr)

Where :math:`\gamma < 0` the convolution makes -y.  Of its outputs y only maxima, mean and variance are needed then,
which a few images give while their y is in the processor's cache.  For the derivative y is made again, so that all of
it is never in memory.

Gain: with the other kernels on, training a Conv4 takes 1/1.04 to 1/1.16 of the time and a test down to 1/1.23; of 84×84
images a fifth to a third of the memory is kept for the derivatives.
Reference: the four layers one after the other.  Test: ``tests/test_kernels.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.nn import functional as F

from .plain import Normalized

__all__ = ["block", "fits", "outputs"]

_LARGE = 1 << 20  # outputs of the convolution, from where on passes over memory cost more than further calls
_AT_ONCE = 1 << 19  # outputs, which stay in the cache

Pair = tuple[int, int]
Geometry = tuple[Pair, Pair, Pair]  # stride, padding and dilation


def fits(x: Any, layers: Sequence[Any], weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether :func:`block` is for these layers and images: many of them, on a CPU, and weights that tasks share.

    Args:
        x: images ``(N, C, H, W)``; under ``vmap``, those of one of the tasks.
        layers: of the block, one after the other.
        weight: factors of the normalization.
        bias: what it adds.
    """
    convolution, *_, pooling = layers
    if [type(layer) for layer in (convolution, *layers[2:])] != [nn.Conv2d, nn.ReLU, nn.MaxPool2d]:
        return False
    if not isinstance(x, Tensor) or x.ndim != 4 or any(_hooked(layer) for layer in layers):
        return False
    usual = convolution.groups == 1 and convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    usual = usual and pooling.padding == 0 and pooling.dilation == 1 and not pooling.ceil_mode
    weights = [w for w in (convolution.weight, convolution.bias, weight, bias) if w is not None]
    # Weights of a task's own come of an inner loop, whose derivatives have derivatives: there the layers are faster.
    shared = all(w.is_leaf and not is_batchedtensor(w) for w in weights)
    same = all((t.device.type, t.dtype) == ("cpu", x.dtype) for t in (x, *weights)) and x.dtype.itemsize >= 4
    eager = not (torch.is_autocast_enabled("cpu") or torch.jit.is_tracing() or torch.compiler.is_compiling())  # type: ignore[attr-defined]
    return bool(usual and shared and same and eager) and outputs(x, convolution).numel() >= _LARGE


def _hooked(layer: nn.Module) -> bool:
    """Whether anyone waits for this layer to run."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return any(hooks)


def outputs(x: Tensor, convolution: nn.Conv2d) -> torch.Size:
    """Shape of the outputs of a convolution of images ``(N, C, H, W)``."""
    sides = zip(x.shape[2:], *_geometry(convolution), convolution.kernel_size, strict=True)
    made = [(side + 2 * around - apart * (kernel - 1) - 1) // step + 1 for side, step, around, apart, kernel in sides]
    return torch.Size((len(x), convolution.out_channels, *made))


def block(
    x: Tensor,
    convolution: nn.Conv2d,
    pooling: nn.MaxPool2d,
    weight: Tensor | None,
    bias: Tensor | None,
    given: tuple[Tensor, Tensor] | None,
    eps: float,
) -> Normalized:
    """What convolution, normalization, ReLU and max-pooling make of images, and the mean and variance in between.

    Args:
        x: images ``(N, C, H, W)``; under ``vmap``, those of one of the tasks.
        convolution: the first layer.
        pooling: the last one.
        weight: factors of the normalization, ``(C,)``, or ``None``.
        bias: what it adds, ``(C,)``, or ``None``.
        given: mean and variance of the channels, if not those of the batch.
        eps: added to the variance.
    """
    sign = convolution.weight.new_ones(convolution.out_channels)
    if weight is not None:
        sign = torch.where(weight < 0, -sign, sign)
    kernel, windows = convolution.weight * sign[:, None, None, None], (pooling.kernel_size, pooling.stride)
    pixels = outputs(x, convolution)[2:].numel()
    pooled, mean, var = _Maxima.apply(x, kernel, _geometry(convolution), windows, given is None, pixels)
    added = 0 if convolution.bias is None else convolution.bias
    mean, var = given or (sign * mean + added, var)
    factor = torch.rsqrt(var + eps) if weight is None else sign * weight * torch.rsqrt(var + eps)
    y = (pooled + (sign * (added - mean))[:, None, None]) * factor[:, None, None]
    return F.relu(y if bias is None else y + bias[:, None, None]), mean, var


def _geometry(convolution: nn.Conv2d) -> Geometry:
    return convolution.stride, convolution.padding, convolution.dilation  # type: ignore[return-value]


class _Maxima(torch.autograd.Function):
    """Maxima of the outputs of a convolution over the windows of a pooling, and their mean and variance where wanted.

    A derivative that is to have one itself is that of torch's layers.
    """

    generate_vmap_rule = False

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, geometry: Geometry, windows: Any, recorded: bool, pixels: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, mean, squares, pooled = 0, *weight.new_zeros(2, len(weight)), []
        for part in _parts(x, len(weight) * pixels):
            y = F.conv2d(x[part], weight, None, *geometry)
            pooled.append(F.max_pool2d(y, *windows))
            if recorded:  # as Chan et al. 1979 put two parts together, without differences of large numbers
                rows = y.movedim(1, -1).flatten(0, -2)
                own = rows.mean(0)
                centered, further = rows - own, own - mean
                share = len(rows) / (count + len(rows))
                squares = squares + torch.linalg.vecdot(centered, centered, dim=0) + count * share * further.square()
                mean, count = mean + share * further, count + len(rows)
        return torch.cat(pooled), mean, squares / max(count, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, *ctx.how = inputs
        ctx.save_for_backward(x, weight, output[1])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_differentiable(x, weight, slopes, *ctx.how), None, None, None, None
        by_x = ctx.needs_input_grad[0]
        return *_derivatives(x, weight, mean, slopes, *ctx.how, by_x=by_x), None, None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, *others: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
        found = [_Maxima.apply(task, *others) for task in x.unbind(in_dims[0])]  # type: ignore[arg-type]
        return tuple(map(torch.stack, zip(*found, strict=True))), (0, 0, 0)


def _parts(x: Tensor, of_one: int) -> Iterator[slice]:
    """The images, as many at once as stay in the cache, each of which has ``of_one`` outputs."""
    at_once = max(1, _AT_ONCE // of_one)
    return (slice(first, first + at_once) for first in range(0, len(x), at_once))


def _derivatives(
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    slopes: tuple[Tensor, ...],
    geometry: Geometry,
    windows: Any,
    recorded: bool,
    pixels: int,
    *,
    by_x: bool,
) -> tuple[Tensor | None, Tensor]:
    """By the images, where wanted, and by the weight."""
    dpooled, dmean, dvar = slopes
    count = len(x) * pixels
    slope = 2 * dvar / count  # mean and variance are functions of y, too
    level = dmean / count - slope * mean
    slope, level = slope[:, None, None], level[:, None, None]
    dx, dw = torch.empty_like(x) if by_x else None, torch.zeros_like(weight)
    for part in _parts(x, len(weight) * pixels):
        y = F.conv2d(x[part], weight, None, *geometry)
        _, at = torch.ops.aten.max_pool2d_with_indices(y, *windows)
        dy = torch.ops.aten.max_pool2d_with_indices_backward(dpooled[part], y, *windows, (0, 0), (1, 1), False, at)
        dy = dy + torch.addcmul(level, y, slope) if recorded else dy
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            dy, x[part], weight, None, *geometry, False, (0, 0), 1, (by_x, True, False)
        )
        dw += of_weight
        if dx is not None:
            dx[part] = of_x
    return dx, dw


def _differentiable(
    x: Tensor,
    weight: Tensor,
    slopes: tuple[Tensor, ...],
    geometry: Geometry,
    windows: Any,
    recorded: bool,
    pixels: int,
) -> tuple[Tensor, Tensor]:
    """Derivatives by the images and the weight, which have derivatives themselves."""

    def reference(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        y = F.conv2d(x, weight, None, *geometry)
        return F.max_pool2d(y, *windows), *((y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)) if recorded else ())

    pull = torch.func.vjp(reference, x, weight)[1]
    return pull(slopes if recorded else slopes[:1])
