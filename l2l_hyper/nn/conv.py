"""Convolutions with weights of each task's own, as matrix products."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.nn import functional as F
from torch.nn import grad
from torch.overrides import TorchFunctionMode

from .precision import autocast_enabled

__all__ = ["Convolution", "made_by", "task_convolutions"]

Pair = tuple[int, int]

_CACHED = 1 << 19  # how many numbers of patches are made together for each thread: two megabytes


class Convolution(NamedTuple):
    """The arguments of a convolution of one task."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair


def made_by(y: Tensor) -> Convolution | None:
    """The convolution whose output this is, if within :class:`task_convolutions` nothing was computed since."""
    return getattr(y, "made_by", None)


class task_convolutions(TorchFunctionMode):  # noqa: N801 - used as a function
    """Within the block, ``conv2d`` under ``torch.func.vmap`` with weights of each task's own runs as a matrix product.

    Left to itself ``vmap`` makes a grouped convolution of it, whose second derivative takes several times as long.
    Convolutions with dilation or groups stay as they are.  What comes out remembers how it was made, see
    :func:`made_by`.

    Example:
        >>> x, w = torch.randn(8, 5, 3, 9, 9), torch.randn(8, 4, 3, 3, 3)  # eight tasks
        >>> with task_convolutions():
        ...     y = torch.func.vmap(F.conv2d)(x, w)
        >>> y.shape
        torch.Size([8, 5, 4, 7, 7])
    """

    def __init__(self) -> None:
        super().__init__()
        self._latest: Any = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every call of a torch function within the block."""
        self._forget()  # the call may change it
        given = _arguments(*args, **(kwargs or {})) if func is torch.conv2d else None
        if given is None:
            return func(*args, **(kwargs or {}))
        lower = autocast_enabled(given.x.device)  # which does not reach into vmap
        taken_out = is_batchedtensor(given.weight) or (lower and is_batchedtensor(given.x))
        y: Any = _Convolution.apply(*given) if taken_out else func(*args, **(kwargs or {}))
        if not lower:
            y.made_by = given
            self._latest = y
        return y

    def __exit__(self, *exception: Any) -> None:
        self._forget()
        super().__exit__(*exception)

    def _forget(self) -> None:
        if self._latest is not None:
            del self._latest.made_by
            self._latest = None


def _arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Convolution | None:
    """``None`` for a convolution that ``_Convolution`` does not do."""
    if groups != 1 or isinstance(padding, str) or _pair(dilation) != (1, 1) or input.dim() != 4:
        return None
    return Convolution(input, weight, bias, _pair(stride), _pair(padding))


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class _Convolution(torch.autograd.Function):
    """``conv2d``; what it is for is its rule under ``vmap``."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        dx = grad.conv2d_input(x.shape, weight, dy, ctx.stride, ctx.padding) if wanted[0] else None
        dw = grad.conv2d_weight(x, weight.shape, dy, ctx.stride, ctx.padding) if wanted[1] else None
        return dx, dw, dy.sum((0, 2, 3)) if wanted[2] else None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
    ) -> tuple[Tensor, int]:
        def of_each_task(tensor: Tensor, dim: int | None) -> Tensor:
            return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

        x = of_each_task(x, in_dims[0])
        if in_dims[1] is None and in_dims[2] is None:
            return F.conv2d(x.flatten(0, 1), weight, bias, stride, padding).unflatten(0, x.shape[:2]), 0
        bias = None if bias is None else of_each_task(bias, in_dims[2])
        return _convolve(x, of_each_task(weight, in_dims[1]), bias, stride, padding), 0


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """Images ``(T, N, C, H, W)``, weights ``(T, O, C, h, w)`` and biases ``(T, O)`` to ``(T, N, O, H', W')``."""
    if autocast_enabled(x.device):  # which knows torch's convolutions, and not this one
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    x, w = x.movedim(2, -1), weight.permute(0, 3, 4, 2, 1)
    height, width = (
        (size + 2 * around - kernel) // step + 1
        for size, around, kernel, step in zip(x.shape[2:4], padding, w.shape[1:3], stride, strict=True)
    )
    y = _Output.apply(x, w, torch.Size((*x.shape[:2], height, width, w.shape[-1])), stride, padding)
    return (y if bias is None else y + bias[:, None, None, None]).movedim(-1, 2)


class _Bilinear(torch.autograd.Function):
    """One of three functions of a convolution y(x, w), each derived by the other two, as often as one likes.

    y is linear in x and in w; so are the derivatives of <dy, y(x, w)> by x and by w in what they depend on. Each takes
    its two arguments, the shape of its result, stride and padding.

    Shapes: x ``(T, N, H, W, C)``, w ``(T, h, w, C, O)``, y ``(T, N, H', W', O)``.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.shapes = inputs[0].shape, inputs[1].shape
        ctx.geometry = inputs[3:]


class _Output(_Bilinear):
    """y(x, w)."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, shape: torch.Size, stride: Pair, padding: Pair) -> Tensor:
        y = x.new_empty(shape)
        rows, matrices = y.flatten(1, 3), w.flatten(1, 3)
        for tasks, patches in _Patches(x.shape, w.shape, shape, stride, padding).each_group_of(x):
            torch.bmm(patches, matrices[tasks], out=rows[tasks])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, w = ctx.saved_tensors
        return _derivatives(ctx, (_ByInput, dy, w), (_ByWeight, dy, x))


class _ByInput(_Bilinear):
    """Derivative of <dy, y(x, w)> by x."""

    @staticmethod
    def forward(dy: Tensor, w: Tensor, shape: torch.Size, stride: Pair, padding: Pair) -> Tensor:
        size = _Patches(shape, w.shape, dy.shape, stride, padding)
        rows, matrices = dy.flatten(1, 3), w.flatten(1, 3).transpose(1, 2)
        x = dy.new_empty(size.padded)
        for tasks in size.groups(dy.device):
            size.overlay(torch.bmm(rows[tasks], matrices[tasks]), out=x[tasks])
        return size.without_padding(x)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Any, ...]:
        dy, w = ctx.saved_tensors
        return _derivatives(ctx, (_Output, x, w), (_ByWeight, dy, x))


class _ByWeight(_Bilinear):
    """Derivative of <dy, y(x, w)> by w."""

    @staticmethod
    def forward(dy: Tensor, x: Tensor, shape: torch.Size, stride: Pair, padding: Pair) -> Tensor:
        w = x.new_empty(shape)
        matrices, rows = w.flatten(1, 3), dy.flatten(1, 3)
        for tasks, patches in _Patches(x.shape, shape, dy.shape, stride, padding).each_group_of(x):
            torch.bmm(patches.transpose(1, 2), rows[tasks], out=matrices[tasks])
        return w

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Any, ...]:
        dy, x = ctx.saved_tensors
        return _derivatives(ctx, (_Output, x, w), (_ByInput, dy, w))


def _derivatives(ctx: Any, *calls: tuple[Any, Tensor, Tensor]) -> tuple[Any, ...]:
    """For each of the two arguments, where it is wanted, one of the other two functions."""
    found = (
        function.apply(a, b, shape, *ctx.geometry) if wanted else None
        for wanted, shape, (function, a, b) in zip(ctx.needs_input_grad[:2], ctx.shapes, calls, strict=True)
    )
    return (*found, None, None, None)


class _Patches:
    """What the kernel sees at every position, as a matrix ``(N * H' * W', h * w * C)`` a task.

    Patches are several times larger than the images.  On a CPU they are made for as many tasks as the cache holds, and
    multiplied while they are still in it.
    """

    def __init__(self, x: torch.Size, w: torch.Size, y: torch.Size, stride: Pair, padding: Pair) -> None:
        (tasks, images, height, width, channels), (down, across) = x, padding
        self.x, self.stride, self.padding = x, stride, padding
        self.padded = (tasks, images, height + 2 * down, width + 2 * across, channels)
        self.each = (*y[1:4], *w[1:3], channels)
        self.shape = (math.prod(y[1:4]), math.prod(w[1:4]))

    def groups(self, device: torch.device) -> list[slice]:
        """The tasks whose patches are made together."""
        if device.type != "cpu":
            return [slice(None)]
        tasks = max(1, torch.get_num_threads() * _CACHED // math.prod(self.shape))
        return [slice(first, first + tasks) for first in range(0, self.x[0], tasks)]

    def each_group_of(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The patches of each group of tasks."""
        down, across = self.padding
        x = F.pad(x, (0, 0, across, across, down, down)).contiguous()
        for tasks in self.groups(x.device):
            yield tasks, self._windows(x[tasks]).reshape(-1, *self.shape)

    def overlay(self, patches: Tensor, out: Tensor) -> None:
        """The transpose: every patch of a group of tasks added to where it was taken from, in images with padding."""
        windows = self._windows(out.zero_())
        for to_row, from_row in zip(windows.unbind(4), patches.view(windows.shape).unbind(4), strict=True):
            for to, part in zip(to_row.unbind(4), from_row.unbind(4), strict=True):
                to.add_(part)  # one place of the kernel: there no two patches overlap

    def without_padding(self, x: Tensor) -> Tensor:
        """The images without their padding."""
        (down, across), (_, _, height, width, _) = self.padding, self.x
        return x[:, :, down : down + height, across : across + width]

    def _windows(self, x: Tensor) -> Tensor:
        """Where the kernel stands, in contiguous images with padding."""
        task, image, row, column, _ = x.stride()
        steps = (task, image, self.stride[0] * row, self.stride[1] * column, row, column, 1)
        return x.as_strided((len(x), *self.each), steps)
