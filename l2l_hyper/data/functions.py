"""Functions of one variable to be fitted from a few points: sinusoids, and sinusoids, lines and parabolas mixed.

Sinusoids are those of Finn et al. 2017, https://arxiv.org/abs/1703.03400.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..settings import Count, checked_value
from .counter_random import counters, stream, uniform, words
from .episode import SQUARED_ERROR, Episodes, squared_error

__all__ = ["FUNCTIONS", "FunctionTaskset", "mixed", "sinusoids"]

_QUERIES = 1 << 32  # the first counter of the query points, which so do not depend on the number of support points


def sinusoids(unit: Tensor, x: Tensor) -> Tensor:
    """Values ``(T, N, 1)`` at points ``(T, N, 1)``: amplitude 0.1 to 5, phase 0 to π, as ``(T, 2)`` go from 0 to 1."""
    amplitude, phase = (0.1 + 4.9 * unit[:, 0]).view(-1, 1, 1), (math.pi * unit[:, 1]).view(-1, 1, 1)
    return amplitude * torch.sin(x + phase)


def mixed(unit: Tensor, x: Tensor) -> Tensor:
    """The same for a sinusoid, a line or a parabola, ``(T, 3)``: two numbers for its parameters, one for the kind."""
    a, b = (2 * unit[:, :2] - 1).unsqueeze(1).split(1, -1)
    values = torch.stack([sinusoids(unit[:, :2], x), a * x + 2 * b, 0.2 * a * x**2 + 2 * b])
    return values[(3 * unit[:, 2]).long().clamp_max(2), torch.arange(len(x), device=x.device)]


FUNCTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "sinusoids": (sinusoids, 2),
    "mixture": (mixed, 3),
}
"""Families of functions by name, and how many numbers make one of them."""


@dataclass(frozen=True)
class FunctionTaskset:
    """Regression tasks, each a function drawn at random and known at points from -5 to 5.

    Episodes are addressed by their number, as those of :class:`~l2l_hyper.data.TensorTaskset`.  The queries of an
    episode are the same for every number of support points.

    Args:
        family: "sinusoids" or "mixture".
        name: of the split, such as "test": each has functions of its own.
        seed: seed of the episodes.

    Example:
        >>> tasks = FunctionTaskset("sinusoids", "test")
        >>> tasks.batch(range(32), shots=10, queries=20).support.shape
        torch.Size([32, 10, 1])
    """

    family: str
    name: str
    seed: int = 0

    def batch(
        self,
        indices: Sequence[int] | NDArray[Any],
        *,
        shots: int,
        queries: int,
        ways: int | None = None,
        seed: int | None = None,
    ) -> Episodes:
        """The episodes called ``indices``: points ``(T, N, 1)`` and values ``(T, N, 1)``.

        Args:
            indices: non-negative episode numbers.
            shots: support points.
            queries: query points.
            ways: not read, since there are no classes.
            seed: seed of the episodes, by default that of the taskset.

        Raises:
            InputError: for episode numbers and numbers of points that cannot be.
        """
        shots, queries = checked_value(Count, shots, "shots"), checked_value(Count, queries, "queries")
        of, parameters = FUNCTIONS[self.family]
        seed = self.seed if seed is None else seed
        keys = words(stream(self.family, self.name, seed), counters(indices))[:, None]

        def draw(first: int, count: int, low: float, high: float) -> Tensor:
            numbers = np.arange(first, first + count, dtype=np.uint64)[None]
            return torch.from_numpy(uniform(words(keys, numbers), low, high)).float()

        unit = draw(0, parameters, 0, 1)
        support, query = (
            draw(first, n, -5, 5).unsqueeze(-1) for first, n in ((parameters, shots), (_QUERIES, queries))
        )
        labels, query_labels = of(unit, support), of(unit, query)
        return Episodes(support, labels, query, query_labels, ways=None, loss=squared_error, metric=SQUARED_ERROR)


@dataclass(frozen=True)
class _Functions:
    family: str
    summary: str

    def __call__(self, split_seed: int = 0) -> list[FunctionTaskset]:
        return [FunctionTaskset(self.family, split, split_seed) for split in ("train", "validation", "test")]


SINUSOIDS = _Functions("sinusoids", "sine waves to be fitted (Finn et al. 2017): --shots points each, no classes")
MIXTURE = replace(
    SINUSOIDS, family="mixture", summary="sine waves, lines and parabolas to be fitted: --shots points each"
)
