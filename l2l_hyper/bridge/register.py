"""Tasksets of this package under a name in learn2learn's own registry of benchmarks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from .._learn2learn import learn2learn
from ..data.registry import TASKSETS, register_tasksets
from ..data.taskset import TensorTaskset
from ..errors import InputError

__all__ = ["register"]


def register(name: str = "glyphs", tasksets: Callable[..., Sequence[TensorTaskset]] | None = None) -> None:
    """Let ``learn2learn.vision.benchmarks.get_tasksets`` take ``name``, and :func:`l2l_hyper.data.get_tasksets` too.

    learn2learn makes its own ``Taskset`` of the samples, with its ``FusedNWaysKShots``, ``LoadData``, ``RemapLabels``
    and ``ConsecutiveLabels``, and its ``RandomClassRotation`` where the tasksets have rotations: in learn2learn 0.2.0
    that turns a whole task by one rotation, whether they say ``"class"`` or ``"task"``. Registering again is harmless.

    Args:
        name: what scripts ask for.
        tasksets: makes the train, validation and test :class:`TensorTaskset`; called with keyword arguments, those of
            its signature: the arguments of :func:`l2l_hyper.data.get_tasksets`, or from learn2learn ``train_ways``,
            ``train_samples``, ``test_ways``, ``test_samples``, ``root``, ``device`` and whatever else the script gave.
            ``None`` for tasksets that :func:`l2l_hyper.data.get_tasksets` has by that name, such as the glyphs.

    Raises:
        InputError: for a name that means something else already, and for no maker of tasksets.

    Example:
        >>> register("glyphs")
        >>> import learn2learn as l2l
        >>> "glyphs" in l2l.vision.benchmarks.list_tasksets()
        True
    """
    if tasksets is None and name not in TASKSETS:
        raise InputError(f"expected a function that makes the tasksets called {name!r}, got None; give tasksets=")
    make = TASKSETS[name].make if tasksets is None else tasksets
    if not callable(make):
        raise InputError(f"expected a function that makes tasksets, got {type(make).__name__}; wrap them in a lambda")
    benchmark = _Benchmark(name, make)
    registry = learn2learn().vision.benchmarks._TASKSETS
    ours = _Benchmark(name, TASKSETS[name].make) if name in TASKSETS else benchmark
    if ours != benchmark or registry.get(name, benchmark) != benchmark:
        raise InputError(f"expected a name that is free, got {name!r}, which is another benchmark's; choose another")
    if name not in TASKSETS:
        register_tasksets(name, make)
    registry[name] = benchmark


@dataclass(frozen=True)
class _Benchmark:
    """What learn2learn's registry holds: a function that gives three datasets and their task transforms."""

    name: str
    make: Callable[..., Any]

    def __call__(self, **options: Any) -> tuple[list[Any], list[list[Any]]]:
        made = TASKSETS[self.name].build(options)
        tasksets = [taskset for taskset in made if isinstance(taskset, TensorTaskset)]
        if len(tasksets) < 3:
            raise InputError(
                f"expected three TensorTasksets from the maker of {self.name!r} (train, validation and test), "
                f"got {', '.join(type(taskset).__name__ for taskset in made)}; see l2l_hyper.bridge.convert"
            )
        datasets, transforms = zip(*map(_parts, tasksets), strict=True)
        return list(datasets), list(transforms)


def _parts(taskset: TensorTaskset) -> tuple[Any, list[Any]]:
    """The samples as learn2learn's ``MetaDataset``, and the transforms that draw the same tasks from it."""
    l2l = learn2learn()
    kinds = l2l.data.transforms
    bounds = [*taskset._starts.tolist(), len(taskset._members)]
    members = {label: list(range(*bounds[label : label + 2])) for label in range(taskset.num_classes)}
    dataset = l2l.data.MetaDataset(_Samples(taskset), labels_to_indices=members)
    transforms = [
        kinds.FusedNWaysKShots(dataset, n=taskset.ways, k=taskset.samples),
        kinds.LoadData(dataset),
        kinds.RemapLabels(dataset),
        kinds.ConsecutiveLabels(dataset),
    ]
    if taskset.rotations:
        transforms.append(l2l.vision.transforms.RandomClassRotation(dataset, [0.0, 90.0, 180.0, 270.0]))
    return dataset, transforms


class _Samples(Dataset[tuple[Tensor, int]]):
    """The samples of a taskset one by one, upright and scaled, class after class."""

    def __init__(self, taskset: TensorTaskset) -> None:
        self._taskset = copy.copy(taskset)
        self._taskset.rotations = False
        self._labels = np.repeat(np.arange(taskset.num_classes), taskset._sizes).tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label: int = self._labels[index]
        return self._taskset._gather(np.full((1, 1, 1), index), np.zeros((1, 1), np.int64))[0, 0], label
