"""What is only speed, off unless switched on.  Each file opens with its measured gain, its slow reference and its test.

==================  ====================================================================  =======================
file                what it makes faster, when :func:`enable` was called                  its slow reference
==================  ====================================================================  =======================
``block.py``        convolution, normalization, ReLU and max-pooling of many images       the four layers
``conv.py``         convolutions with weights of each task's own, in second derivatives   ``torch.func.vmap``
``norm.py``         normalization of large tasks on a CPU, and of one task without graph  ``plain.py``
==================  ====================================================================  =======================

:func:`keep_memory` is a function of its own, because it changes the whole process; the command line calls it.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import Tensor

from ..allocator import keep_memory
from . import plain

__all__ = ["enable", "enabled", "keep_memory", "normalize", "task_convolutions"]


class _Switch:
    on = os.environ.get("L2L_HYPER_KERNELS", "") == "1"


def enable(on: bool = True) -> AbstractContextManager[Any]:
    """Switch the fast kernels on or off in this process; in a ``with`` statement, until the end of its block.

    The environment variable ``L2L_HYPER_KERNELS=1`` switches them on from the start.  Results are the same but for
    rounding.

    Example:
        >>> with enable():
        ...     enabled()
        True
        >>> enabled()
        False
    """
    before, _Switch.on = _Switch.on, on
    end = ExitStack()
    end.callback(setattr, _Switch, "on", before)
    return end


def enabled() -> bool:
    """Whether the fast kernels are on."""
    return _Switch.on


def task_convolutions() -> AbstractContextManager[Any]:
    """Within the block, ``conv2d`` under ``vmap`` is that of ``conv.py``, which :class:`torch.autocast` reaches too."""
    from .conv import TaskConvolutions

    return TaskConvolutions()


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    given: tuple[Tensor, Tensor] | None,
    eps: float,
    *,
    recorded: bool = True,
) -> plain.Normalized:
    """Normalize a batch by its own statistics or by those given, see :func:`l2l_hyper.kernels.plain.normalize`.

    Args:
        x: the batch, shape ``(N, C, *)``.
        weight: factors of the channels, shape ``(C,)``, or ``None``.
        bias: what is added to them, shape ``(C,)``, or ``None``.
        given: mean and variance of the channels, if not those of the batch.
        eps: added to the variance.
        recorded: whether anyone uses the mean and variance; otherwise they may be anything.
    """
    if not enabled():
        return plain.normalize(x, weight, bias, given, eps)
    from . import norm

    return norm.normalize(x, weight, bias, given, eps, recorded=recorded)
