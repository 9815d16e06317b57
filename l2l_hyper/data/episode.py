"""Few-shot episodes as plain tensors, with the loss and the metric by which they are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..memory import require_memory
from ..settings import Count, checked_value

__all__ = ["ACCURACY", "SQUARED_ERROR", "Episodes", "Metric", "SupportSet", "cross_entropy", "squared_error"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs ``(T, Q, *)`` and targets of T tasks to one loss per task, shape ``(T,)``."""


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy per task, from logits ``(T, Q, C)`` and labels ``(T, Q)``, shape ``(T,)``."""
    return F.cross_entropy(outputs.movedim(-1, 1), labels, reduction="none").flatten(1).mean(1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error per task, from two tensors ``(T, Q, *)``, shape ``(T,)``; ``InputError`` for two shapes."""
    if outputs.shape != targets.shape:
        raise InputError(
            f"expected values of the shape of the outputs, {tuple(outputs.shape)}, got {tuple(targets.shape)}; "
            "a value per sample is (T, N, 1)"
        )
    return (outputs - targets).square().flatten(1).mean(1)


def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Share of samples whose largest logit is finite and that of their label, per task, shape ``(T,)``."""
    right = (outputs.argmax(-1) == labels) & outputs.amax(-1).isfinite()
    return right.float().flatten(1).mean(1)


@dataclass(frozen=True)
class Metric:
    """What a table reports of the queries of a task.

    Attributes:
        name: as tables print it.
        of: outputs ``(T, Q, *)`` and targets to one number per task, shape ``(T,)``.
        higher_is_better: which way is better, for selection on validation episodes and for the order of a table.
        percent: whether the number is a share that tables print in percent.
    """

    name: str
    of: Loss
    higher_is_better: bool = True
    percent: bool = False


ACCURACY = Metric("accuracy", accuracy, percent=True)
SQUARED_ERROR = Metric("squared error", squared_error, higher_is_better=False)


@dataclass(frozen=True, eq=False)
class SupportSet:
    """The support sets of T tasks: all that a method may read when it adapts.

    Attributes:
        x: samples of any shape and dtype, ``(T, N, *)``: images, waveforms, tokens, rows of a table.
        y: classes ``(T, N)`` or of tokens ``(T, N, L)``, integer from 0 to ``ways - 1``, or their shares
            ``(T, N, ways)``; values ``(T, N, *)`` where ``ways`` is ``None``.
        ways: classes per task, ``None`` in regression.
        loss: outputs and ``y`` to one loss per task.
        seen: what the network showed of ``x`` before adaptation, where a caller has it already; a method that reads it
            (:class:`~l2l_hyper.methods.taskwise.Pass`) spares itself that pass.
        encoded: what a frozen second network makes of ``x``, ``(T, N, E)``, where a caller has it already; the same.

    Raises:
        InputError: for samples and labels of different tasks, and for a task without a sample.
    """

    x: Tensor
    y: Tensor
    ways: int | None
    loss: Loss = cross_entropy
    seen: Any = None
    encoded: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.x, Tensor) or not isinstance(self.y, Tensor):
            return  # the arguments of a network that takes several, or a loss that knows its targets
        if min(self.x.ndim, self.y.ndim) < 2 or len(self.x) != len(self.y) or 0 in self.x.shape[:2]:
            raise InputError(
                "expected samples (T, N, *) and labels (T, N) of as many tasks, with at least one sample in each, got "
                f"shapes {tuple(self.x.shape)} and {tuple(self.y.shape)}; a single task is x[None] and y[None]"
            )
        if self.ways is not None and not self.y.is_floating_point():
            object.__setattr__(self, "y", self.y.long())

    def __len__(self) -> int:
        return len(self.x)

    def check_labels(self, *, every_class: bool) -> None:
        """Look at every label, for which a GPU has to be waited for.

        Args:
            every_class: whether each class needs a sample.

        Raises:
            InputError: for other numbers of samples and labels, labels outside the ways, and classes without a sample.
        """
        if self.x.shape[1] != self.y.shape[1]:
            raise InputError(
                f"expected one label per sample, got {self.x.shape[1]} samples and {self.y.shape[1]} labels"
            )
        if self.ways is None or self.y.is_floating_point():
            return
        ways = checked_value(Count, self.ways, "ways")
        require_memory(8 * self.y.numel() * ways, f"a support set of {ways:,} ways", "ask for fewer ways")
        low, high = self.y.min(), self.y.max()
        if low < 0 or high >= ways:
            raise InputError(
                f"labels must lie in 0 … {ways - 1} for {ways} ways, got {low} … {high}; relabel the tasks"
            )
        if every_class and not self.one_hot(torch.bool).any(1).all():
            raise InputError(
                f"every class needs a support sample in each task, got {ways} ways and a class without one"
            )

    @property
    def rows(self) -> Tensor:
        """``y`` with classes of tokens ``(T, N, L)`` as ``(T, N·L)``, one for each row of the logits."""
        return self.y if self.ways is None or self.y.is_floating_point() else self.y.flatten(1)

    def one_hot(self, dtype: torch.dtype) -> Tensor:
        """Classes ``(T, N, C)`` as one-hot vectors, or as the shares that ``y`` holds already; a row for each token."""
        if self.ways is None:
            raise InputError("this method makes one vector per class, but the targets are values; try another method")
        return self.y.to(dtype) if self.y.is_floating_point() else F.one_hot(self.rows, self.ways).to(dtype)

    def __iter__(self) -> Iterator[SupportSet]:
        """Each support set as a batch of one."""
        return (SupportSet(x, y, self.ways, self.loss) for x, y in zip(self.x.split(1), self.y.split(1), strict=True))


@dataclass(frozen=True, eq=False)
class Episodes:
    """A batch of T episodes, with samples of any shape and dtype.

    Attributes:
        support: support samples, shape ``(T, N, *)``; in classification N is ways · shots, the samples of a class are
            consecutive and labels ascend.
        support_labels: their labels, int64 with shape ``(T, N)``; in regression their values ``(T, N, *)``.
        query: query samples, shape ``(T, Q, *)``.
        query_labels: their labels or values.
        ways: classes per episode, ``None`` in regression.
        loss: outputs and labels of T tasks to one loss per task, which training minimises.
        metric: what tables report.
        support_encoded: what a frozen second network makes of the support samples, ``(T, N, E)``, where it is known.
        query_encoded: the same of the queries.
    """

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor
    ways: int | None
    loss: Loss = cross_entropy
    metric: Metric = ACCURACY
    support_encoded: Tensor | None = None
    query_encoded: Tensor | None = None

    @property
    def support_set(self) -> SupportSet:
        """What a method adapts to."""
        return SupportSet(self.support, self.support_labels, self.ways, self.loss, encoded=self.support_encoded)

    def __len__(self) -> int:
        return len(self.support)

    def __iter__(self) -> Iterator[Episodes]:
        return (self.task(i) for i in range(len(self)))

    def task(self, index: int) -> Episodes:
        """Episode ``index`` as a batch of one (tensors are views); ``IndexError`` when there is no such episode."""
        position = range(len(self))[index]
        return self._with(lambda tensor: tensor[position : position + 1])

    def split(self, size: int) -> Iterator[Episodes]:
        """Batches of ``size`` episodes and one of those that are left (tensors are views)."""

        def part(first: int) -> Episodes:
            return self._with(lambda tensor: tensor[first : first + size])

        return (part(first) for first in range(0, len(self), size))

    def to(self, device: torch.device | str) -> Episodes:
        """The same episodes on ``device``."""
        return self._with(lambda tensor: tensor.to(device))

    def _with(self, change: Callable[[Tensor], Tensor]) -> Episodes:
        names = ("support", "support_labels", "query", "query_labels", "support_encoded", "query_encoded")
        tensors = {name: getattr(self, name) for name in names}
        changed: dict[str, Any] = {name: change(own) for name, own in tensors.items() if own is not None}
        return replace(self, **changed)
