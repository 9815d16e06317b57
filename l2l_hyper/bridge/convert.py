"""A user's learn2learn dataset or taskset as a taskset of this package: by index arithmetic, or task by task."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import default_collate

from .._learn2learn import learn2learn
from ..data.counter_random import below, stream, words
from ..data.quantize import NotVectorised, materialise
from ..data.taskset import TensorTaskset
from ..errors import InputError
from .learn2learn_taskset import Learn2learnTaskset

__all__ = ["convert"]

_CHAINS = (
    ["FusedNWaysKShots", "LoadData", "RemapLabels"],
    ["NWays", "KShots", "LoadData", "RemapLabels"],
)
_AFTERWARDS = ("ConsecutiveLabels", "RandomClassRotation")


def convert(
    source: Any, *, ways: int | None = None, samples: int | None = None, seed: int = 0, name: str = ""
) -> TensorTaskset | Learn2learnTaskset:
    """A learn2learn taskset, or a dataset of its kind, as a taskset whose episodes are addressed by index.

    Tasks are distributed as learn2learn's are. The classes are those of the dataset that the task transforms hold,
    which need not be the taskset's own (it is not in learn2learn's Omniglot benchmark). The images are read twice
    when this is called, and kept as uint8. :meth:`TensorTaskset.sample` puts classes in the order of their labels in
    the dataset, with ``ConsecutiveLabels`` or without.

    With task transforms that index arithmetic cannot express, and with images that change from reading to reading or
    have no 8-bit levels, learn2learn goes on making the tasks one at a time, and a warning says why.

    Args:
        source: a ``Taskset``, or a ``MetaDataset`` (``UnionMetaDataset`` and ``FilteredMetaDataset`` are).
        ways: classes per task, for a dataset; a taskset has its own.
        samples: images per class, for a dataset; a taskset has its own.
        seed: seed of the episodes when a call gives none.
        name: name of the split; tasksets of different names draw different episodes from the same seed.

    Returns:
        A :class:`TensorTaskset`, or where that is not possible a :class:`Learn2learnTaskset`.

    Raises:
        InputError: for anything else than those, and for task transforms that do not make tasks.
    """
    l2l = learn2learn()
    if isinstance(source, l2l.data.Taskset):
        if ways is not None or samples is not None:
            raise InputError("expected ways and samples for a dataset only, got them for a taskset; leave them out")
        taskset = source
    elif isinstance(source, l2l.data.MetaDataset):
        if ways is None or samples is None:
            raise InputError(f"expected ways and samples for a dataset, got ways={ways}, samples={samples}; give both")
        kinds = l2l.data.transforms
        steps = [kinds.FusedNWaysKShots(source, n=ways, k=samples)]
        steps += [kind(source) for kind in (kinds.LoadData, kinds.RemapLabels, kinds.ConsecutiveLabels)]
        taskset = l2l.data.Taskset(source, steps)
    else:
        raise InputError(
            f"expected a Taskset or MetaDataset of learn2learn, got {type(source).__name__}; "
            "wrap a dataset in learn2learn.data.MetaDataset"
        )
    try:
        return _vectorised(taskset, _recipe(taskset), seed, name)
    except NotVectorised as reason:
        warnings.warn(f"{reason}: tasks will be made one at a time by learn2learn, which is slower", stacklevel=2)
        return Learn2learnTaskset(taskset, seed=seed, name=name)


@dataclass(frozen=True)
class _Recipe:
    """What learn2learn's task transforms do together."""

    dataset: Any
    labels: list[Any]
    ways: int
    samples: int
    replacement: bool
    shuffle: bool
    consecutive_first: bool
    rotations: Literal[False, "task"]


def _recipe(taskset: Any) -> _Recipe:
    data, steps = learn2learn().data, taskset.task_transforms
    if type(taskset) not in (data.Taskset, data.TaskDataset) or taskset.task_collate is not default_collate:
        raise NotVectorised("a taskset of its own class, or with its own task_collate, cannot be vectorised")
    kinds = [_kind(step) for step in ([steps] if callable(steps) else steps)]
    if not _is_usual(kinds):
        raise NotVectorised(f"the sequence of task transforms {', '.join(kinds) or '(none)'} cannot be vectorised")
    by_kind = dict(zip(kinds, steps, strict=True))
    dataset = by_kind["LoadData"].dataset
    if any(step.dataset is not dataset for step in steps):
        raise NotVectorised(f"the task transforms {', '.join(kinds)} of different datasets cannot be vectorised")
    select = by_kind.get("FusedNWaysKShots") or by_kind["NWays"]
    shots = by_kind.get("KShots", select)
    labels = dataset.labels if select is not shots else select.filter_labels
    if len(set(labels)) < len(labels):
        raise NotVectorised("the task transform FusedNWaysKShots with a label twice cannot be vectorised")
    shuffle = by_kind["RemapLabels"].shuffle
    if not shuffle and not all(isinstance(label, int) for label in labels):
        raise NotVectorised("the task transform RemapLabels cannot be vectorised: no shuffle, labels not integers")
    degrees = by_kind["RandomClassRotation"].degrees if "RandomClassRotation" in kinds else [0]
    if sorted(angle % 360 for angle in degrees) not in ([0], [0, 90, 180, 270]):
        raise NotVectorised(f"the task transform RandomClassRotation by {degrees} cannot be vectorised")
    return _Recipe(
        dataset=dataset,
        labels=sorted(labels),
        ways=select.n,
        samples=shots.k,
        replacement=bool(shots.replacement),
        shuffle=bool(shuffle),
        consecutive_first="ConsecutiveLabels" in kinds[: kinds.index("RemapLabels")],
        rotations="task" if len(degrees) > 1 else False,
    )


def _kind(step: Any) -> str:
    """The name of one of learn2learn's task transforms, whose compiled base classes are what unpickling gives."""
    cls = type(step)
    name: str = cls.__name__.removeprefix("Cython")
    if cls.__module__.startswith("learn2learn.") and name in {*_CHAINS[0], *_CHAINS[1], *_AFTERWARDS}:
        return name
    raise NotVectorised(f"the task transform {getattr(step, '__qualname__', cls.__qualname__)} cannot be vectorised")


def _is_usual(kinds: list[str]) -> bool:
    """Whether classes are chosen first (after another step learn2learn 0.2.0 cannot) and images turned once loaded."""
    if [kind for kind in kinds if kind not in _AFTERWARDS] not in _CHAINS or kinds[0] in _AFTERWARDS:
        return False
    return "RandomClassRotation" not in kinds[: kinds.index("LoadData")] and kinds.count("RandomClassRotation") < 2


def _vectorised(taskset: Any, recipe: _Recipe, seed: int, name: str) -> TensorTaskset:
    members = [recipe.dataset.labels_to_indices.get(label, []) for label in recipe.labels]
    ends = np.cumsum([len(m) for m in members])
    images, scale = materialise(recipe.dataset, [int(index) for m in members for index in m])
    if recipe.rotations and images.shape[2] != images.shape[3]:
        raise NotVectorised("the task transform RandomClassRotation cannot be vectorised: the images are not square")
    options: dict[str, Any] = {
        "x": images,
        "classes": np.split(np.arange(len(images)), ends[:-1]),
        "ways": recipe.ways,
        "samples": recipe.samples,
        "num_tasks": taskset.num_tasks,
        "rotations": recipe.rotations,
        "scale": scale,
        "seed": seed,
        "name": name,
        "class_names": [str(label) for label in recipe.labels],
    }
    if recipe.shuffle and not recipe.replacement:
        return TensorTaskset(**options)
    return _RecipeTaskset(recipe, options)


class _RecipeTaskset(TensorTaskset):
    """With samples drawn with replacement, or labels in the order of ``RemapLabels(shuffle=False)``, or both."""

    def __init__(self, recipe: _Recipe, options: dict[str, Any]) -> None:
        self._recipe = recipe
        super().__init__(**options)

    def _check(self, ways: int, shots: int, queries: int) -> None:
        if self._recipe.replacement:  # one image is enough for any number of shots and queries
            shots, queries = min(shots, 1), min(queries, 0)
        super()._check(ways, shots, queries)

    def _draw(
        self, numbers: NDArray[np.uint64], ways: int, shots: int, queries: int, seed: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        self._check(ways, shots, queries)
        if not self._recipe.replacement:
            classes, picks, turns = super()._draw(numbers, ways, shots, queries, seed)
        else:
            classes, _, turns = super()._draw(numbers, ways, 1, 0, seed)
            each = shots + queries
            keys = words(stream("replacement", self.seed if seed is None else seed, self.name, ways, each), numbers)
            bits = words(keys[:, None], np.arange(ways * each, dtype=np.uint64)).reshape(-1, ways, each)
            picks = self._starts[classes][:, :, None] + below(bits, self._sizes[classes].astype(np.uint64)[:, :, None])
        if not self._recipe.shuffle:
            labels = self._recipe.labels
            drawn = [[labels[c] for c in row] for row in classes.tolist()]
            # Without a shuffle, learn2learn numbers labels in the order of Python's set of them, which for integers
            # depends only on the order in which they were added.
            sets = [set(sorted(row) if self._recipe.consecutive_first else row) for row in drawn]
            order = np.array([[row.index(label) for label in found] for row, found in zip(drawn, sets, strict=True)])
            classes, turns = (np.take_along_axis(values, order, 1) for values in (classes, turns))
            picks = np.take_along_axis(picks, order[:, :, None], 1)
        return classes, picks, turns
