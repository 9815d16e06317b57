"""Tasksets and metrics by name: built in, registered, or through entry points."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..registry import Registry
from .episode import Episodes, Metric
from .image_file import IMAGES

__all__ = [
    "METRICS",
    "OF_A_FOLDER",
    "TASKSETS",
    "BenchmarkTasksets",
    "Taskset",
    "TasksetsEntry",
    "get_tasksets",
    "list_tasksets",
    "register_metric",
    "register_tasksets",
]

_TASKS = ("train_ways", "train_samples", "test_ways", "test_samples", "num_tasks")
_GENERAL = (*_TASKS, "root", "device", "split_seed")  # arguments that a maker of tasksets may do without


class Taskset(Protocol):
    """What a comparison needs of a taskset.

    Where a taskset has ``num_classes``, ``class_names`` and ``fingerprint(count, *, ways, shots, queries, seed)``, they
    are recorded; without the last its first episodes are hashed.
    """

    def batch(
        self,
        indices: Sequence[int] | NDArray[Any],
        *,
        shots: int,
        queries: int,
        ways: int | None = None,
        seed: int | None = None,
    ) -> Episodes:
        """The episodes called ``indices``: the same ones each time, whatever else is in the batch."""


class BenchmarkTasksets(NamedTuple):
    """The three tasksets of a benchmark, which share no class."""

    train: Taskset
    validation: Taskset
    test: Taskset


@dataclass(frozen=True)
class TasksetsEntry:
    """Tasksets of a comparison.

    Attributes:
        name: as ``--tasksets`` takes it.
        summary: one line for ``l2l-hyper list``.
        make: some of the arguments of :func:`get_tasksets`, to the train, validation and test taskset.
    """

    name: str
    summary: str
    make: Callable[..., Iterable[Taskset]]

    @property
    def endings(self) -> Sequence[str]:
        """How the names of files end that become samples: those of images, unless ``make.endings`` says otherwise."""
        return getattr(self.make, "endings", IMAGES)

    def sample(self, path: Path, shape: tuple[int, ...], options: Mapping[str, Any]) -> Tensor:
        """A file as a sample of the tasksets.

        Args:
            path: of the file.
            shape: of the samples.
            options: of the tasksets.

        Raises:
            InputError: for a file that cannot be read, and where ``make`` does not say how, by
                ``make.sample(path, shape, **options)``.
        """
        read = getattr(self.make, "sample", None)
        if read is None:
            raise InputError(
                f"the tasksets {self.name!r} do not say how a file becomes a sample; give tensors to "
                "l2l_hyper.load(CHECKPOINT) instead"
            )
        sample: Tensor = read(path, shape, **options)
        return sample

    def scale(self, options: Mapping[str, Any]) -> float | None:
        """What 8-bit levels are multiplied by, ``None`` where ``make.scale(**options)`` does not say it."""
        of = getattr(self.make, "scale", None)
        return None if of is None else float(of(**options))

    def build(self, options: Mapping[str, Any]) -> BenchmarkTasksets:
        """The tasksets.

        Args:
            options: arguments of :func:`get_tasksets`, given to ``make`` as far as its signature has them, and others,
                which its signature must have.

        Raises:
            InputError: for an option that it has not, and for what are not three tasksets.
        """
        signature = inspect.signature(self.make)
        parameters = signature.parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            for option, value in options.items():
                if option not in parameters and option not in _GENERAL and value is not None:
                    raise InputError(f"the tasksets {self.name!r} take no {option}, got {value!r}; leave it out")
            options = {option: value for option, value in options.items() if option in parameters}
        try:
            signature.bind(**options)
        except TypeError as error:
            raise InputError(
                f"expected a function of arguments of get_tasksets that makes the tasksets {self.name!r}, "
                f"got {self.name}{signature} ({error})"
            ) from error
        return _three(self.name, self.make(**options))


def register_tasksets(name: str, make: Callable[..., Iterable[Taskset]] | Iterable[Taskset], summary: str = "") -> None:
    """Add tasksets of your own, so that :func:`get_tasksets`, ``compare`` and the command line take them by name.

    Args:
        name: as ``--tasksets`` takes it.
        make: three tasksets (train, validation, test), or a function that gives them. The function is called with those
            arguments of :func:`get_tasksets`, as keywords, that its signature has. A taskset is a
            :class:`TensorTaskset` or any other object with ``batch(indices, *, shots, queries, ways=None, seed=None)``
            that gives :class:`Episodes`, see :class:`Taskset`.
        summary: one line for ``l2l-hyper list``; the first line of the function's docstring if left out.

    Raises:
        InputError: for a name that is taken, and for what cannot make tasksets.

    Example:
        >>> class Sinusoids:
        ...     def batch(self, indices, *, shots, queries, ways=None, seed=None):
        ...         phase = torch.tensor([[[float(i)]] for i in indices])
        ...         x = torch.linspace(-3, 3, shots + queries).view(1, -1, 1).expand(len(phase), -1, 1)
        ...         (x, q), (y, r) = (part.split([shots, queries], 1) for part in (x, torch.sin(x + phase)))
        ...         return Episodes(x, y, q, r, ways=None, loss=squared_error, metric=SQUARED_ERROR)
        >>> from l2l_hyper.data.episode import SQUARED_ERROR, squared_error
        >>> register_tasksets("waves", [Sinusoids(), Sinusoids(), Sinusoids()])
        >>> get_tasksets("waves").test.batch(range(4), shots=10, queries=20).query.shape
        torch.Size([4, 20, 1])
    """
    TASKSETS.register(name, _tasksets_entry(name, make, summary))


def register_metric(
    name: str, of: Callable[[Tensor, Tensor], Tensor], higher_is_better: bool = True, percent: bool = False
) -> None:
    """Add a metric of your own, so that ``compare(metric=...)`` and ``--metric`` take it by name.

    Args:
        name: as ``--metric`` takes it and as tables print it.
        of: outputs ``(T, Q, *)`` and labels or values of T tasks, to one number per task, shape ``(T,)``.
        higher_is_better: which way is better.
        percent: whether the number is a share that tables print in percent.

    Raises:
        InputError: for a name that is taken, and for what is not a function.

    Example:
        >>> register_metric("absolute-error", lambda outputs, y: (outputs - y).abs().flatten(1).mean(1), False)
        >>> METRICS["absolute-error"].of(torch.zeros(2, 3, 1), torch.ones(2, 3, 1))
        tensor([1., 1.])
    """
    METRICS.register(name, _metric(name, of, higher_is_better, percent))


def list_tasksets() -> dict[str, str]:
    """The names that :func:`get_tasksets` takes, each with one line on what it is.

    >>> list(list_tasksets())[:6]
    ['glyphs', 'omniglot', 'mini-imagenet', 'tiered-imagenet', 'fc100', 'cifarfs']
    """
    return {name: TASKSETS[name].summary for name in TASKSETS}


def get_tasksets(
    name: str,
    train_ways: int = 5,
    train_samples: int = 10,
    test_ways: int = 5,
    test_samples: int = 10,
    num_tasks: int = -1,
    root: str | os.PathLike[str] = "~/data",
    device: torch.device | str | None = None,
    *,
    split_seed: int = 0,
    data_augmentation: str | None = None,
    rotations: bool | Literal["class", "task"] | None = None,
    **options: Any,
) -> BenchmarkTasksets:
    """Tasksets by name: of a benchmark, as ``learn2learn.vision.benchmarks.get_tasksets`` gives them, or of your own.

    The images of a benchmark are read through learn2learn's own datasets once, cached under ``root`` (or the user's
    cache folder where that cannot be written) and held in one tensor. Nothing is downloaded. Unlike in learn2learn
    0.2.0, the class split of Omniglot depends on ``split_seed`` alone and no class is in two of its splits (there, the
    three tasksets draw from all 1623).

    Args:
        name: one of :func:`list_tasksets`, ``folder:PATH``, see :class:`~l2l_hyper.data.folder.ImageFolder`, or
            ``package.module:function``, see :func:`register_tasksets`.
        train_ways: classes per training task.
        train_samples: samples per class of a training task.
        test_ways: classes per validation or test task.
        test_samples: samples per class of a validation or test task.
        num_tasks: number of different tasks, or -1 for an unlimited number.
        root: folder that holds the data in the form that learn2learn's datasets read; ``glyphs`` needs none.
        device: where samples and episodes are kept, by default the CPU.
        split_seed: seed of the class split (``omniglot`` and ``glyphs``) and of the episodes addressed by index.
        data_augmentation: for ``mini-imagenet`` and ``tiered-imagenet``: ``None`` or ``"normalize"``, as in learn2learn
            (mini-ImageNet's pixels go from 0 to 255 without it).
        rotations: see :class:`TensorTaskset`; by default ``"class"`` for ``omniglot`` and none elsewhere.
        **options: of these tasksets, such as ``image_size`` of ``folder:PATH``.

    Raises:
        InputError: for an unknown name or option, data that are missing or damaged, tasks that they cannot give, and
            tasksets that are not three or lack ``batch``.
    """
    options |= {
        "train_ways": train_ways,
        "train_samples": train_samples,
        "test_ways": test_ways,
        "test_samples": test_samples,
        "num_tasks": num_tasks,
        "root": root,
        "device": device,
        "split_seed": split_seed,
        "data_augmentation": data_augmentation,
        "rotations": rotations,
    }
    return TASKSETS[name].build(options)


def _three(name: str, made: object) -> BenchmarkTasksets:
    tasksets: list[Any] = list(made) if isinstance(made, Iterable) else [made]
    if len(tasksets) == 3 and all(callable(getattr(taskset, "batch", None)) for taskset in tasksets):
        return BenchmarkTasksets(*tasksets)
    arrived = ", ".join(type(taskset).__name__ for taskset in tasksets) or "none"
    raise InputError(
        f"expected three tasksets of {name!r} (train, validation and test), each with "
        f"batch(indices, *, shots, queries, ways=None, seed=None) that gives Episodes, got {arrived}; "
        "l2l_hyper.data.TensorTaskset makes one from tensors, l2l_hyper.bridge.convert from a taskset of learn2learn"
    )


def _tasksets_entry(name: str, made: object, summary: str = "") -> TasksetsEntry:
    """The entry of a function that makes three tasksets, or of the three."""
    if not callable(made):
        tasksets = _three(name, made)
        return TasksetsEntry(name, summary, lambda: tasksets)
    docstring = inspect.getdoc(made) if inspect.isroutine(made) or inspect.isclass(made) else None
    return TasksetsEntry(name, summary or getattr(made, "summary", (docstring or "").partition("\n")[0]), made)


def _metric(name: str, of: object, higher_is_better: bool = True, percent: bool = False) -> Metric:
    """The metric of a function; one that is a metric already stays."""
    if isinstance(of, Metric):
        return of
    if not callable(of):
        raise InputError(f"expected a function of outputs and labels for the metric {name!r}, got {type(of).__name__}")
    return Metric(name, of, higher_is_better, percent)


OF_A_FOLDER = ("folder", "wav-folder")
"""Tasksets that are named with the path of a folder, as ``folder:PATH``."""


class _Tasksets(Registry[TasksetsEntry]):
    """Tasksets by name, among them those of a folder."""

    def __getitem__(self, name: str) -> TasksetsEntry:
        kind, colon, path = name.partition(":")
        if not colon or kind not in OF_A_FOLDER:
            return super().__getitem__(name)
        entry = super().__getitem__(kind)
        return replace(entry, name=name, make=replace(entry.make, path=path))  # type: ignore[type-var]


TASKSETS = _Tasksets(
    "taskset",
    "l2l_hyper.tasksets",
    {
        "glyphs": "l2l_hyper.data.glyphs:GLYPHS",
        "omniglot": "l2l_hyper.bridge.benchmarks:OMNIGLOT",
        "mini-imagenet": "l2l_hyper.bridge.benchmarks:MINI_IMAGENET",
        "tiered-imagenet": "l2l_hyper.bridge.benchmarks:TIERED_IMAGENET",
        "fc100": "l2l_hyper.bridge.benchmarks:FC100",
        "cifarfs": "l2l_hyper.bridge.benchmarks:CIFARFS",
        "speech": "l2l_hyper.data.speech:SPEECH",
        "sinusoids": "l2l_hyper.data.functions:SINUSOIDS",
        "mixture": "l2l_hyper.data.functions:MIXTURE",
        "folder": "l2l_hyper.data.folder:FOLDER",
        "wav-folder": "l2l_hyper.data.speech:WAV_FOLDER",
    },
    _tasksets_entry,
)
"""Tasksets by the name that ``--tasksets`` takes; others through the entry-point group ``l2l_hyper.tasksets``."""

METRICS: Registry[Metric] = Registry(
    "metric",
    "l2l_hyper.metrics",
    {
        "accuracy": "l2l_hyper.data.episode:ACCURACY",
        "squared-error": "l2l_hyper.data.episode:SQUARED_ERROR",
    },
    _metric,
)
"""Metrics by the name that ``--metric`` takes; others through the entry-point group ``l2l_hyper.metrics``."""
