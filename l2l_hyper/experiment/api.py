"""Comparisons from Python: compare methods, train one, evaluate one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from ..bridge.protocol import Learner
from ..data import Taskset
from ..errors import InputError
from ..methods import Method, as_method
from ..settings import Name, checked_value
from .distributed import is_first, process_group
from .evaluation import evaluate_on
from .folder import open_folder
from .memory import tasks_at_once
from .parts import Parts
from .plan import Plan, make_plan
from .provenance import collect
from .records import Record
from .result import Result
from .runner import carry_out
from .training import train_and_test

__all__ = ["compare", "evaluate", "train"]

MethodLike = str | Callable[..., nn.Module]
BackboneLike = str | Callable[..., nn.Module]
TasksetsLike = str | Sequence[Taskset]


def compare(
    tasksets: TasksetsLike = "glyphs",
    methods: Sequence[MethodLike] = Plan.methods,
    *,
    backbone: BackboneLike = "omniglot-cnn",
    options: Mapping[Any, Mapping[str, Any]] | None = None,
    seeds: Sequence[int] = Plan.seeds,
    out: str | Path | None = None,
    device: str = Plan.device,
    data_root: str | Path = Plan.data_root,
    memory_limit: float = Plan.memory_limit,
    progress: bool = False,
    **settings: Any,
) -> list[Record]:
    """Train methods and test them on the same episodes, as ``l2l-hyper compare`` does.

    Args:
        tasksets: a name that ``l2l-hyper list`` shows, ``folder:PATH``, or three tasksets (train, validation, test),
            see :class:`~l2l_hyper.data.Taskset`.
        methods: names, or classes or functions that make a method of a backbone, see
            :func:`~l2l_hyper.register_method`.
        backbone: a name, or a function ``make(ways, sample_shape, **options)`` that gives an ``nn.Module``.
        options: options of each method, by the method or its name.
        seeds: training seeds.
        out: folder for records and checkpoints, with which the same call goes on where it was; without it nothing is
            kept on the disk.
        device: such as "cuda".
        data_root: folder of the data sets.
        memory_limit: MiB for the graphs of the episodes that are trained on together.
        progress: whether to show progress on stderr.
        **settings: fields of :class:`~l2l_hyper.experiment.Experiment`, such as ``ways`` and ``iterations``.

    Returns:
        One record per method and seed, which :mod:`l2l_hyper.report` reads.

    Raises:
        InputError: for an unknown name or setting, a value out of range, a method that breaks the contract, a
            folder that holds another experiment, and a loss that is not finite.

    Example:
        >>> records = compare("glyphs", ["protonet"], channels=8, iterations=2, validation_episodes=2, test_episodes=4)
        >>> records[0].label, records[0].scores.shape
        ('ProtoNet', (4,))
    """
    values = {"seeds": seeds, "device": device, "data_root": data_root, "memory_limit": memory_limit, **settings}
    out = checked_value(Name | Path | None, out, "out")
    parts = _parts(tasksets, [methods] if isinstance(methods, str) else methods, backbone, options or {}, values)
    plan, folder = parts.plan, None if out is None else Path(out)
    provenance = collect("l2l_hyper.compare", plan.device)
    with process_group(plan.device), nullcontext() if folder is None else open_folder(folder, plan.experiment):
        return carry_out(parts, folder, provenance, Console(stderr=True, quiet=not (progress and is_first())))


def train(
    method: MethodLike,
    tasksets: TasksetsLike = "glyphs",
    *,
    backbone: BackboneLike = "omniglot-cnn",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    **settings: Any,
) -> tuple[Method, Result]:
    """Train one method, select its weights on validation episodes, and test them.

    Args:
        method: a name, or a class or function that makes a method of a backbone.
        options: options of the method.
        seed: training seed.
        **settings: device, data_root, memory_limit and fields of :class:`~l2l_hyper.experiment.Experiment`.

    The other arguments are those of :func:`compare`.

    Returns:
        The trained method, in evaluation mode, and what was measured.

    Raises:
        InputError: as :func:`compare`.

    Example:
        >>> method, result = train("protonet", channels=8, iterations=2, validation_episodes=2, test_episodes=4)
        >>> len(result.scores), result.parameters["generated"]
        (4, 45)
    """
    parts = _parts(tasksets, [method], backbone, {method: options or {}}, {**settings, "seeds": (seed,)})
    (run,) = parts.plan.runs(parts.options)
    with process_group(parts.plan.device):
        trained, result = train_and_test(run, parts, folder=None)
    return trained.eval(), result


def evaluate(method: nn.Module, tasksets: TasksetsLike = "glyphs", **settings: Any) -> NDArray[np.float64]:
    """Scores of a method on test episodes, with shape ``(test_episodes,)``.

    Args:
        method: what :func:`train` or :func:`~l2l_hyper.load` returned, or any ``nn.Module`` with ``adapt(support)`` and
            ``predict(adapted, query)``.
        tasksets: as in :func:`compare`.
        **settings: as in :func:`train`.

    Raises:
        InputError: as :func:`compare`.

    Example:
        >>> method, _ = train("protonet", channels=8, iterations=2, validation_episodes=2, test_episodes=4)
        >>> evaluate(method, ways=3, shots=5, test_episodes=10).shape
        (10,)
    """
    parts = _parts(tasksets, None, "omniglot-cnn", {}, settings)
    e, test = parts.plan.experiment, parts.tasksets.test
    method = method.method if isinstance(method, Learner) else method
    wrapped = method if isinstance(method, Method) else as_method(method, e.normalization)
    wrapped.to(parts.device)
    form = {"ways": e.ways, "shots": e.shots, "queries": e.queries}
    first = test.batch([0], **form).to(parts.device)
    measured = evaluate_on(
        wrapped,
        test,
        range(e.test_episodes),
        parts.metric or first.metric,
        form=form,
        device=parts.device,
        batch_size=min(e.meta_batch, tasks_at_once(wrapped, first, parts.plan.memory_limit)),
    )
    return measured.scores.numpy()


def _parts(
    tasksets: TasksetsLike,
    methods: Sequence[MethodLike] | None,
    backbone: BackboneLike,
    options: Mapping[Any, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> Parts:
    """The plan by names, with the objects that were given in the place of some."""
    for name, value, kind in (
        ("methods", methods, Iterable),
        ("tasksets", tasksets, Iterable),
        ("options", options, Mapping),
    ):
        if not isinstance(value, kind) and not (
            value is None and name == "methods"
        ):  # None where there is nothing to train
            raise InputError(f"{name} must be a {kind.__name__.lower()}, got {type(value).__name__}")
    for method, table in options.items():
        if not isinstance(table, Mapping):
            raise InputError(f"options of {_name(method)} must be a mapping, got {type(table).__name__}")
    values = {
        **settings,
        "tasksets": tasksets if isinstance(tasksets, str) else ", ".join(_name(taskset) for taskset in tasksets),
        "backbone": _name(backbone),
        "options": {_name(method): dict(table) for method, table in options.items()},
        "data_root": str(settings.get("data_root", Plan.data_root)),
        "device": str(settings.get("device", Plan.device)),
        **({} if methods is None else {"methods": [_name(method) for method in methods]}),
    }
    return Parts(
        make_plan(values),
        methods={_name(method): method for method in methods or () if not isinstance(method, str)},
        backbone=None if isinstance(backbone, str) else backbone,
        tasksets=None if isinstance(tasksets, str) else tasksets,
    )


def _name(thing: Any) -> str:
    """The name that a record gives an object: its own if it has one, else that of its class."""
    if isinstance(thing, str):
        return thing
    return str(getattr(thing, "__name__", "") or getattr(thing, "name", "") or type(thing).__name__)
