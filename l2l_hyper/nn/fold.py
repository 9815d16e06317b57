"""The normalization of a convolution's output, folded into the convolution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .conv import Convolution
from .normalize import Normalized

__all__ = ["folded", "folds"]

_FEW = 32  # numbers of a patch


def folds(convolution: Convolution) -> bool:
    """Whether folding pays: where the kernel reads few numbers."""
    return convolution.weight[0].numel() <= _FEW


def folded(
    convolution: Convolution,
    weight: Tensor | None,
    bias: Tensor | None,
    given: tuple[Tensor, Tensor] | None,
    eps: float,
) -> Normalized:
    r"""What :func:`~l2l_hyper.nn.normalize.normalize` makes of a convolution's output, without passing over it.

    A channel is :math:`w^\top p` of the patches p, so its mean and variance are :math:`w^\top\mu` and
    :math:`w^\top\Sigma\,w` of the mean and the covariance of the patches, and the normalized channel is a convolution
    with weights of another length.  Derivatives of any order are those of small matrices.
    """
    x, kernel, shift, stride, padding = convolution
    rows = kernel.flatten(1)
    if given is None:
        patch, covariance = _moments(x, kernel.shape[2:], stride, padding)
        mean, var = rows @ patch, torch.linalg.vecdot(rows @ covariance, rows)
        mean = mean if shift is None else mean + shift
    else:
        mean, var = given
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    level = (-mean if shift is None else shift - mean) * scale
    y = F.conv2d(x, kernel * scale[:, None, None, None], level if bias is None else level + bias, stride, padding)
    return y, mean, var


def _moments(x: Tensor, kernel: torch.Size, stride: tuple[int, int], padding: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean ``(K,)`` and covariance ``(K, K)`` of the patches of images ``(N, C, H, W)``."""
    patches = F.unfold(x, kernel, padding=padding, stride=stride).movedim(1, 0).flatten(1)
    mean = patches.mean(1)
    centered = patches - mean[:, None]
    return mean, centered @ centered.T / centered.shape[1]
