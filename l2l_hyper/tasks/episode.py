"""A batch of few-shot episodes as plain tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Episodes"]


@dataclass(frozen=True, eq=False)
class Episodes:
    r"""A batch of :math:`T` episodes; the samples of a class are consecutive and labels ascend.

    Attributes:
        support: support images, float32 with shape :math:`(T, \mathrm{ways} \cdot \mathrm{shots}, C, H, W)`.
        support_labels: their labels, int64 with shape :math:`(T, \mathrm{ways} \cdot \mathrm{shots})`.
        query: query images, float32 with shape :math:`(T, \mathrm{ways} \cdot \mathrm{queries}, C, H, W)`.
        query_labels: their labels, int64 with shape :math:`(T, \mathrm{ways} \cdot \mathrm{queries})`.
        ways: number of classes an episode.
    """

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor
    ways: int

    def __len__(self) -> int:
        return len(self.support)

    def __iter__(self) -> Iterator[Episodes]:
        return (self.task(i) for i in range(len(self)))

    def task(self, index: int) -> Episodes:
        """Episode ``index`` as a batch of one (tensors are views); ``IndexError`` when there is no such episode."""
        position = range(len(self))[index]
        return self._at(slice(position, position + 1))

    def split(self, size: int) -> Iterator[Episodes]:
        """Batches of ``size`` episodes and one of those that are left (tensors are views)."""
        return (self._at(slice(first, first + size)) for first in range(0, len(self), size))

    def _at(self, at: slice) -> Episodes:
        return replace(
            self,
            support=self.support[at],
            support_labels=self.support_labels[at],
            query=self.query[at],
            query_labels=self.query_labels[at],
        )

    def to(self, device: torch.device | str) -> Episodes:
        """The same episodes on ``device``."""
        return replace(
            self,
            support=self.support.to(device),
            support_labels=self.support_labels.to(device),
            query=self.query.to(device),
            query_labels=self.query_labels.to(device),
        )
