"""A taskset of learn2learn as it is, with the methods of a tensor-backed taskset."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.counter_random import counters, stream, words
from ..data.episode import Episodes
from ..errors import InputError

__all__ = ["Learn2learnTaskset"]


class Learn2learnTaskset:
    """Tasks that learn2learn makes one at a time, with the methods of :class:`TensorTaskset`.

    Episode ``i`` is the task that learn2learn makes after Python's, numpy's and torch's random states have been seeded
    with a hash of the seed, the name of the taskset and ``i``; afterwards the states are restored. :meth:`sample`,
    iteration, indexing and length are learn2learn's own.

    Attributes:
        taskset: the taskset of learn2learn.
        ways: classes per task.
        samples: samples per class.

    Raises:
        InputError: if the taskset does not make tasks of equally many samples of each of the labels 0 to ways - 1.
    """

    def __init__(self, taskset: Any, *, seed: int = 0, name: str = "") -> None:
        self.taskset = taskset
        self.seed = seed
        self.name = name
        try:
            task = self._task(self._keys([0], None)[0])
        except Exception as error:  # transforms that do not fit each other may raise any
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"expected task transforms that make a task, got {what}; try taskset.sample()") from error
        if not (isinstance(task, (tuple, list)) and len(task) == 2 and all(isinstance(part, Tensor) for part in task)):
            raise InputError(
                f"expected tasks that are two tensors, samples and labels, got {type(task).__name__}; "
                "is LoadData missing?"
            )
        self.ways, self.samples = _counts(task[1])

    def batch(
        self,
        indices: Sequence[int] | NDArray[Any],
        *,
        shots: int,
        queries: int,
        ways: int | None = None,
        seed: int | None = None,
    ) -> Episodes:
        """The episodes called ``indices``: the first ``shots`` samples of each class, and ``queries`` after them.

        Raises:
            InputError: for other ways than the taskset's, or more shots and queries than its samples per class.
        """
        if shots < 1 or queries < 0 or shots + queries > self.samples or ways not in (None, self.ways):
            raise InputError(
                f"expected ways={self.ways} and up to {self.samples} shots and queries per class, as the task "
                f"transforms make, got ways={ways}, shots={shots}, queries={queries}; change the transforms for others"
            )
        parts = [self._split(self._task(key), shots, queries) for key in self._keys(indices, seed)]
        support, query = (torch.stack(images) for images in zip(*parts, strict=True))
        support_labels, query_labels = (
            torch.arange(self.ways, device=support.device).repeat_interleave(each).repeat(len(parts), 1)
            for each in (shots, queries)
        )
        return Episodes(support, support_labels, query, query_labels, self.ways)

    def episode(
        self, index: int, *, shots: int, queries: int, ways: int | None = None, seed: int | None = None
    ) -> Episodes:
        """Episode ``index`` as a batch of one, see :meth:`batch`."""
        return self.batch([index], shots=shots, queries=queries, ways=ways, seed=seed)

    def sample(self) -> tuple[Tensor, Tensor]:
        """One random task ``(x, y)``."""
        return self.taskset.sample()

    def __len__(self) -> int:
        return len(self.taskset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.taskset[index]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.taskset)

    def _keys(self, indices: Sequence[int] | NDArray[Any], seed: int | None) -> list[int]:
        address = stream("task", self.seed if seed is None else seed, self.name)
        return words(address, counters(indices)).tolist()

    def _task(self, key: int) -> Any:
        with _seeded(key):
            return self.taskset.get_task(self.taskset.sample_task_description())

    def _split(self, task: tuple[Tensor, Tensor], shots: int, queries: int) -> tuple[Tensor, Tensor]:
        x, y = task
        if _counts(y) != (self.ways, self.samples):
            raise InputError(f"expected tasks of {self.ways} x {self.samples} samples, got labels {y.tolist()}")
        x = x[torch.argsort(y, stable=True)].unflatten(0, (self.ways, self.samples))
        return x[:, :shots].flatten(0, 1), x[:, shots : shots + queries].flatten(0, 1)


def _counts(y: Tensor) -> tuple[int, int]:
    """Ways, and samples per class, of a task."""
    ways, each = y.unique(return_counts=True)
    if y.ndim != 1 or ways.tolist() != list(range(len(ways))) or len(each.unique()) != 1:
        raise InputError(
            f"expected tasks of equally many samples of each of the labels 0 to ways - 1, got labels {y.tolist()}; "
            "are KShots or RemapLabels missing?"
        )
    return len(ways), int(each[0])


@contextmanager
def _seeded(key: int) -> Iterator[None]:
    """The global random states seeded, and restored afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(key)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
