"""Learned update rules: a hypernetwork that reads a gradient and generates what it is scaled by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError

__all__ = ["HyperTransform"]


class HyperTransform(nn.Module):
    r"""Gradient to update, for whatever takes a ``transform`` in learn2learn.

    The gradient of a weight with rows i (dimension 0, the outputs) and columns j (dimension 1, the inputs) becomes

    .. math:: u_{ij} = (1 + r_i)\,(1 + c_j)\,g_{ij}

    where a small network generates :math:`r_i` from a learned embedding of the row and from how large the gradient is,
    in that row and in all, and another one :math:`c_j` from the columns.  Both begin at zero: untrained, the update is
    the gradient.  With the sizes left out it would be a factored Meta-SGD (Li et al. 2017,
    https://arxiv.org/abs/1707.09835); with them it is a learned optimizer (Andrychowicz et al. 2016,
    https://arxiv.org/abs/1606.04474) whose cost grows with rows plus columns, not with their product.

    The class itself is what learn2learn calls with each parameter; ``functools.partial`` sets the width:

        >>> import learn2learn as l2l
        >>> gbml = l2l.algorithms.GBML(nn.Linear(4, 2), transform=HyperTransform, lr=0.1)
        >>> learner = gbml.clone()
        >>> learner.adapt(learner(torch.randn(3, 4)).square().mean())

    Args:
        param: the parameter whose gradients come, of any shape.
        width: hidden units of each of the two networks, and half as many numbers in an embedding.

    Shape: any gradient of the shape of ``param``, and the same out.
    """

    def __init__(self, param: Tensor, width: int = 16) -> None:
        super().__init__()
        if width < 2:
            raise InputError(f"width must be at least 2, got {width}")
        self.shape = param.shape
        sides = param.shape[:2] or (1,)
        self.scales = nn.ModuleList(_Scale(size, width) for size in sides).to(param.device, param.dtype)

    def forward(self, grad: Tensor) -> Tensor:
        """The update."""
        if grad.shape != self.shape:
            raise InputError(f"expected a gradient of shape {tuple(self.shape)}, got {tuple(grad.shape)}")
        power = grad.square().reshape(*(grad.shape[:2] or (1,)), -1).mean(-1)
        update = grad
        for side, scale in enumerate(self.scales):
            lines = power.mean(1 - side) if power.dim() == 2 else power
            shape = [-1 if d == side else 1 for d in range(grad.dim())]
            update = update * scale(lines).reshape(shape)
        return update


class _Scale(nn.Module):
    """One factor for each line (row or column) of a gradient, from its mean square and an embedding."""

    def __init__(self, lines: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(lines, width // 2))
        self.hidden = nn.Linear(width // 2 + 2, width)
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, power: Tensor) -> Tensor:
        whole = (power.mean() + 1e-16).log()
        sizes = torch.stack([(power + 1e-16).log() - whole, whole.expand_as(power) / 8], -1)
        return 1 + self.out(torch.tanh(self.hidden(torch.cat([self.embedding, sizes], -1)))).squeeze(-1)
