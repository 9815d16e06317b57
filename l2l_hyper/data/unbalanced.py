r"""Tasks whose queries are not as many of each class, after Veilleux et al. 2021, "Realistic Evaluation of Transductive
Few-Shot Learning", https://arxiv.org/abs/2204.11181.

A method that reads queries together may take it for granted that there are as many of each class.  Here the numbers
:math:`Q_c` of an episode with Q queries follow

.. math:: Q_c \approx Q\,\pi_c, \qquad (\pi_1 \dots \pi_C) \sim \operatorname{Dirichlet}(\alpha, \dots, \alpha),

in whole numbers: those below, and one more where the largest remainders are, until there are Q.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..settings import Count, checked_value
from .counter_random import counters, stream, uniform, words
from .episode import Episodes
from .taskset import TensorTaskset

__all__ = ["UnbalancedTaskset"]


class UnbalancedTaskset(TensorTaskset):
    """The tasks of a taskset with as many queries in all, and other numbers of them per class.

    An episode depends on its index as those of the taskset do.

    Args:
        taskset: which stays as it is.
        alpha: α of the Dirichlet distribution, a whole number from 1: the larger, the more balanced.

    Raises:
        InputError: for another α, and from :meth:`batch` where a class has not as many samples as all queries together.
    """

    def __init__(self, taskset: TensorTaskset, alpha: int) -> None:
        vars(self).update(vars(taskset))
        self.alpha = checked_value(Count, alpha, "alpha")

    def batch(
        self,
        indices: Sequence[int] | NDArray[Any],
        *,
        ways: int | None = None,
        shots: int,
        queries: int,
        seed: int | None = None,
    ) -> Episodes:
        """As of the taskset; ``queries`` is the mean number per class, and the queries of a class are consecutive."""
        ways = self.ways if ways is None else ways
        total = self._total(ways, shots, queries)
        drawn = super().batch(indices, ways=ways, shots=shots, queries=total, seed=seed)
        numbers = self._numbers(indices, ways, shots, queries, seed)
        taken = torch.from_numpy(np.arange(total) < numbers[:, :, None]).to(self.device)  # (T, ways, total)
        at = taken.flatten(1).nonzero()[:, 1].view(len(drawn), total)

        def of(values: Tensor) -> Tensor:
            rows = at.view(*at.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
            return values.gather(1, rows)

        encoded = None if drawn.query_encoded is None else of(drawn.query_encoded)
        return replace(drawn, query=of(drawn.query), query_labels=of(drawn.query_labels), query_encoded=encoded)

    def fingerprint(
        self, count: int, *, ways: int | None = None, shots: int, queries: int, seed: int | None = None
    ) -> str:
        """SHA-256 of that of the taskset and of the numbers of queries of the first ``count`` episodes."""
        ways = self.ways if ways is None else ways
        drawn = super().fingerprint(count, ways=ways, shots=shots, queries=self._total(ways, shots, queries), seed=seed)
        numbers = self._numbers(range(count), ways, shots, queries, seed)
        return hashlib.sha256(drawn.encode() + numbers.astype("<i8").tobytes()).hexdigest()

    def _total(self, ways: int, shots: int, queries: int) -> int:
        if shots + ways * queries > self.samples_per_class:
            raise InputError(
                f"{self.name or 'the taskset'} has {self.samples_per_class} samples per class, and unbalanced queries "
                f"need shots + ways * queries of them, {shots + ways * queries}; ask for fewer"
            )
        return ways * queries

    def _numbers(
        self, indices: Sequence[int] | NDArray[Any], ways: int, shots: int, queries: int, seed: int | None
    ) -> NDArray[np.int64]:
        """How many queries each class has, ``(T, ways)``."""
        seed = self.seed if seed is None else seed
        keys = words(stream("unbalanced", seed, self.name, ways, shots, queries, self.alpha), counters(indices))
        bits = words(keys[:, None], np.arange(ways * self.alpha, dtype=np.uint64)).reshape(-1, ways, self.alpha)
        shares = -np.log1p(-uniform(bits, 0.0, 1.0)).sum(2)  # of a gamma distribution, up to their sum
        exact = ways * queries * shares / shares.sum(1, keepdims=True)
        numbers = np.floor(exact).astype(np.int64)
        missing = ways * queries - numbers.sum(1, keepdims=True)
        ranks = np.argsort(np.argsort(numbers - exact, axis=1, kind="stable"), axis=1)
        return numbers + (ranks < missing)
