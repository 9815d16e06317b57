"""Runs of a few iterations, and what is the same in two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from l2l_hyper.data import ACCURACY, Episodes, Metric, Taskset, get_tasksets
from l2l_hyper.experiment.config import Experiment, Run
from l2l_hyper.experiment.parts import Parts
from l2l_hyper.experiment.plan import Plan
from l2l_hyper.experiment.training import Progress, Step, train_and_test

LITTLE = Experiment(
    ways=3,
    queries=2,
    iterations=4,
    meta_batch=2,
    validate_every=2,
    validation_episodes=4,
    test_episodes=5,
    channels=8,
    backbone="conv4",
    normalization="running",
    class_batch=12,
)
TIMES = ("seconds_to_train", "adaptation_ms", "peak_memory_mb")


wrong = Metric("share of errors", lambda o, y: 1 - ACCURACY.of(o, y), higher_is_better=False, percent=True)


class Killed(Exception):
    """Stands for a process that is killed."""


def kill_at(iteration: int) -> Progress:
    """Progress that kills the run after an iteration."""

    def progress(step: Step) -> None:
        if step.iteration == iteration:
            raise Killed

    return progress


def train(
    run: Run,
    folder: Path,
    *,
    device: str = "cpu",
    memory_limit_mb: float = 2048.0,
    test: bool = True,
    progress: Progress | None = None,
    methods: dict[str, Callable[..., Any]] | None = None,
    tasksets: Sequence[Taskset] | None = None,
) -> dict[str, Any]:
    """What training one run measures, as a record holds it."""
    plan = Plan(
        experiment=run.experiment,
        methods=(run.method,),
        options={run.method: dict(run.options)},
        device=device,
        memory_limit=memory_limit_mb,
        data_root=str(folder),
    )
    parts = Parts(plan, methods=methods, tasksets=tasksets)
    run = replace(run, options=parts.options[run.method])
    _, result = train_and_test(run, parts, folder=folder, test=test, progress=progress)
    return asdict(result)


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """What two runs have in common."""
    result = {key: value for key, value in result.items() if key not in TIMES}
    for curve in ("validation", "training"):
        result[curve] = [{k: v for k, v in point.items() if k != "seconds"} for point in result[curve]]
    return result


@dataclass
class Poisoned:
    """A taskset with one episode whose first support sample is not a number."""

    taskset: Taskset
    index: int

    def batch(self, indices: Sequence[int], **form: Any) -> Episodes:
        """The episodes of the taskset, the bad one among them."""
        episodes = self.taskset.batch(indices, **form)
        episodes.support[[i for i, index in enumerate(indices) if index == self.index], 0] = torch.nan
        return episodes


@dataclass
class Doubled:
    """A taskset in float64."""

    taskset: Taskset

    def batch(self, indices: Sequence[int], **form: Any) -> Episodes:
        """The episodes of the taskset."""
        episodes = self.taskset.batch(indices, **form)
        return replace(episodes, support=episodes.support.double(), query=episodes.query.double())


def doubled(train_ways: int, train_samples: int, test_ways: int, test_samples: int, split_seed: int) -> list[Taskset]:
    """The glyphs in float64."""
    return [
        Doubled(t)
        for t in get_tasksets("glyphs", train_ways, train_samples, test_ways, test_samples, split_seed=split_seed)
    ]
