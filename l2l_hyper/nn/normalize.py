"""The normalization of a batch, in three ways that agree: in steps, at once, and task by task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

__all__ = ["Normalized", "normalize"]

Normalized = tuple[Tensor, Tensor, Tensor]
"""The normalized batch, mean and variance."""

_LARGE = 1 << 16  # numbers of a task; from here on passes over memory cost more than an operation for each task


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    given: tuple[Tensor, Tensor] | None,
    eps: float,
    *,
    second_order: bool,
    recorded: bool,
) -> Normalized:
    """Normalize ``x`` of shape ``(N, C, *)`` by its own mean and (biased) variance, or by those given.

    Args:
        x: the batch.
        weight: a factor for each of the C channels.
        bias: what is added to each.
        given: mean and variance of each, if not those of the batch.
        eps: added to the variance.
        second_order: whether to be fast in second derivatives; they are right in either case.
        recorded: whether anyone uses the mean and variance; else they may be anything.
    """
    if not is_batchedtensor(x) and not torch.is_grad_enabled():
        return _at_once(x, weight, bias, given, eps, recorded)
    if not second_order and x.device.type == "cpu" and x.dtype.itemsize >= 4 and x.numel() >= _LARGE:
        one_task = (None if t is None else t.unsqueeze(0) for t in (x, weight, bias, *(given or (None, None))))
        y, mean, var = (output.squeeze(0) for output in _ByTask.apply(*one_task, eps))
        return (y, *given) if given else (y, mean, var)
    return _in_steps(x, weight, bias, given, eps)


def _in_steps(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, given: tuple[Tensor, Tensor] | None, eps: float
) -> Normalized:
    """In elementary operations, right under vmap and in any derivative."""
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


def _at_once(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    given: tuple[Tensor, Tensor] | None,
    eps: float,
    recorded: bool,
) -> Normalized:
    """In one operation of torch's, whose statistics have no derivative."""
    mean, var = given or (None, None)
    y, own, scale = torch.native_batch_norm(x, weight, bias, mean, var, training=given is None, momentum=0.0, eps=eps)
    return y, own, scale.pow_(-2).sub_(eps).clamp_min_(0) if recorded else scale


class _ByTask(torch.autograd.Function):
    """T tasks one after the other by torch's operation: ``x`` is ``(T, N, C, *)``, what belongs to channels ``(T, C)``.

    With mean and variance given, the two outputs beside y say nothing.
    """

    generate_vmap_rule = False

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, eps: float
    ) -> Normalized:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)  # torch writes nonsense to ``out`` of any other layout
        y, means, scales = torch.empty_like(x), *x.new_empty(2, len(x), x.shape[2])
        for t, out in enumerate(zip(y, means, scales, strict=True)):
            channels = [None if tensor is None else tensor[t] for tensor in (weight, bias, mean, var)]
            torch.ops.aten.native_batch_norm.out(
                x[t], *channels, mean is None, 0.0, eps, out=out[0], save_mean=out[1], save_invstd=out[2]
            )
        return y, means, scales.pow_(-2).sub_(eps).clamp_min_(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Normalized) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dmean: Tensor, dvar: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _, mean, var, own_mean, own_var = ctx.saved_tensors
        over = (1, *range(3, x.dim()))
        size = x[0].numel() / x.shape[2]

        def channels(c: Tensor) -> Tensor:
            return c.unflatten(-1, (1, -1, *(1 for _ in over[1:])))

        given = mean is not None
        if not given:
            mean, var = own_mean, own_var
        if not given and torch.is_grad_enabled():  # the derivative is to have one, too
            mean = x.mean(over)
            var = (x - channels(mean)).square().mean(over)
        scale = torch.rsqrt(var + ctx.eps)
        if torch.is_grad_enabled():
            dweight, dbias = (dy * (x - channels(mean))).sum(over) * scale, dy.sum(over)
        else:
            sums = [_sums(*task) for task in zip(dy, x, mean, scale, strict=True)]
            dweight, dbias = (torch.stack(parts) for parts in zip(*sums, strict=True))
        factor = scale if weight is None else scale * weight
        if given:
            dx = dy * channels(factor)
            dmean, dvar = -factor * dbias, -0.5 * scale * factor * dweight
        else:  # mean and variance are functions of x, too
            slope = (2 * dvar - scale * factor * dweight) / size
            level = (dmean - factor * dbias) / size - slope * mean
            dx = torch.addcmul(channels(level), x, channels(slope)) + dy * channels(factor)
        gradients = (dx, dweight, dbias, dmean, dvar, None)
        return tuple(g if wanted else None for g, wanted in zip(gradients, ctx.needs_input_grad, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Normalized, tuple[int, int, int]]:
        *tensors, eps = inputs
        outputs = _ByTask.apply(
            *(_flat(t, dim, info.batch_size) for t, dim in zip(tensors, in_dims[:-1], strict=True)), eps
        )
        return tuple(out.unflatten(0, (info.batch_size, -1)) for out in outputs), (0, 0, 0)


def _sums(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of one task by weight and bias, in one pass."""
    _, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
        dy, x, None, None, None, mean, scale, True, 0.0, (False, True, True)
    )
    return dweight, dbias


def _flat(tensor: Tensor | None, dim: int | None, tasks: int) -> Tensor | None:
    """Two dimensions of tasks, of which vmap holds one, as one."""
    if tensor is None:
        return None
    return (tensor.expand(tasks, *tensor.shape) if dim is None else tensor.movedim(dim, 0)).flatten(0, 1)
