"""The normalization of a convolution's output, folded into the convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor
from torch.nn import functional as F

from .conv import Convolution
from .normalize import Normalized

__all__ = ["folded", "folding_pays", "folds"]

_FEW = 32  # numbers of a patch
_LARGE = 1 << 16  # numbers of a batch of tasks


def folds(convolution: Convolution) -> bool:
    """Whether a convolution folds: where the kernel reads few numbers, of enough digits for a variance."""
    return convolution.weight[0].numel() <= _FEW and convolution.x.dtype.itemsize >= 4


def folding_pays(images: Any) -> bool:
    """Whether it pays for images under vmap where tasks share the weights: in derivatives of large batches."""
    if not (isinstance(images, Tensor) and is_batchedtensor(images) and torch.is_grad_enabled()):
        return False
    return get_unwrapped(images).numel() >= _LARGE


def folded(
    convolution: Convolution,
    weight: Tensor | None,
    bias: Tensor | None,
    given: tuple[Tensor, Tensor] | None,
    eps: float,
) -> Normalized:
    r"""What :func:`~l2l_hyper.nn.normalize.normalize` makes of a convolution's output, without passing over it.

    A channel is :math:`w^\top p` of the patches p, so its mean and variance are :math:`w^\top\mu` and
    :math:`w^\top\Sigma\,w` of the mean and the covariance of the patches, and the normalized channel is the product
    of what is left of the patches without their mean and weights of another length.  Derivatives of any order are
    those of matrix products, and need no activation but the patches.
    """
    x, kernel, shift, stride, padding = convolution
    patches, size = _patches(x, kernel.shape[2:], stride, padding)
    centre = patches.mean((0, 2))
    patches = patches - centre[:, None]
    rows = kernel.flatten(1)
    own = rows @ centre
    if shift is not None:
        own = own + shift
    if given is None:
        covariance = (patches @ patches.transpose(1, 2)).sum(0) / patches[:, 0].numel()
        mean, var = own, torch.linalg.vecdot(rows @ covariance, rows)
    else:
        mean, var = given
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    level = (own - mean) * scale
    if bias is not None:
        level = level + bias
    # The level is added by a row of ones, without another pass over the result.
    rows = torch.cat([rows * scale[:, None], level[:, None]], 1)
    y = F.pad(patches, (0, 0, 0, 1), value=1.0).transpose(1, 2) @ rows.T
    return y.unflatten(1, size).movedim(-1, 1), mean, var


def _patches(
    x: Tensor, kernel: torch.Size, stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[Tensor, torch.Size]:
    """What the kernel sees in images ``(N, C, H, W)``, as a matrix ``(N, K, L)``, and its L positions ``(H', W')``."""
    (down, across), (height, width) = padding, kernel
    x = F.pad(x.contiguous(), (across, across, down, down))
    windows = x.unfold(2, height, stride[0]).unfold(3, width, stride[1])
    return windows.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3), windows.shape[2:4]
