"""Records with made-up measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from l2l_hyper.experiment.config import Experiment, Run
from l2l_hyper.experiment.provenance import Provenance
from l2l_hyper.experiment.records import Record, make_record
from l2l_hyper.experiment.result import MetricInfo, Point, Result

EXPERIMENT = Experiment(tasksets="glyphs", test_episodes=40, iterations=100, meta_batch=4)
PROVENANCE = Provenance(
    command="l2l-hyper compare --out runs",
    commit="0123456789abcdef",
    dirty=False,
    package_version="0.1.0",
    environment={"cpu": "A processor", "torch_threads": 2, "gpu": None},
)
LABELS = {"hyper-adapter": "HyperAdapter", "maml": "MAML", "protonet": "ProtoNet"}
OFFSETS = {"hyper-adapter": 0.03, "maml": -0.05, "protonet": 0.0}


def result(run: Run, *, metric: MetricInfo = MetricInfo(), **changes: Any) -> Result:  # noqa: B008 - frozen
    """What training and testing might have measured: methods differ by an offset, seeds by a little."""
    random = np.random.default_rng([run.seed, len(run.method)])
    episodes = np.random.default_rng(7).normal(0.8, 0.05, run.experiment.test_episodes)
    scores = np.clip(episodes + OFFSETS[run.method] + random.normal(0, 0.01, len(episodes)), 0, 1)
    values: dict[str, Any] = {
        "metric": metric,
        "scores": scores.tolist(),
        "losses": [0.1] * len(scores),
        "validation": [
            Point(iteration=25 * i, seconds=2.0 * i + run.seed, loss=1 / i, score=0.2 * i, half_width=0.01)
            for i in range(1, 5)
        ],
        "training": [],
        "selected_iteration": 100,
        "best_validation_score": 0.8,
        "iterations": 100,
        "episodes": 400,
        "seconds_to_train": 8.0 + run.seed,
        "adaptation_ms": 1.5,
        "peak_memory_mb": 100.0 + run.seed,
        "parameters": {"meta": 12345, "backbone": 12000, "generated": 320},
        "manifest": {"hash": "fedcba9876543210"},
        "normalization": run.experiment.normalization,
    }
    return Result(**{**values, **changes})


def records(
    methods: Sequence[str] = tuple(LABELS),
    seeds: Sequence[int] = (0, 1),
    experiment: Experiment = EXPERIMENT,
    **changes: Any,
) -> list[Record]:
    """One record for each method and seed; ``changes`` go to :func:`result`."""
    runs = [
        Run(experiment=experiment, method=method, seed=seed, options={"lr": 0.01})
        for method in methods
        for seed in seeds
    ]
    return [make_record(run, LABELS[run.method], PROVENANCE, result(run, **changes)) for run in runs]
