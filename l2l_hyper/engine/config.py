"""What a comparison is: the settings all methods share, and one run of one method within it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import InputError

__all__ = ["Experiment", "Run"]

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The settings that every method of a comparison shares; two records compare only if these are equal.

    Attributes:
        tasksets: name of the tasksets, as :func:`l2l_hyper.tasks.get_tasksets` takes it.
        ways: classes an episode, in validation and test (and in training unless ``train_ways`` is given).
        shots: support samples a class.
        queries: query samples a class.
        train_queries: query samples a class in training; ``None`` means ``queries``.
        train_ways: classes an episode in training; ``None`` means ``ways``.
        iterations: meta-training iterations (optimiser steps); ignored when ``train_seconds`` is given.
        train_seconds: train for this many seconds instead, for comparisons at equal time.
        meta_batch: episodes an iteration.
        validate_every: iterations between two looks at the validation episodes (and two checkpoints).
        validation_episodes: episodes that select the iteration whose weights are tested.
        test_episodes: episodes of the test table, the same for every method.
        split_seed: seed of the class split and of the validation and test episodes.
        backbone: name of the backbone, see :mod:`l2l_hyper.engine.backbones`.
        hidden: channels a layer of the backbone.
        normalization: the statistics normalisation layers use: "support", "transductive" or "running".
        precision: "float32", or "bfloat16" for :class:`torch.autocast` to it: for a GPU, a CPU is slower with it.
    """

    tasksets: str
    ways: int = 5
    shots: int = 1
    queries: int = 15
    train_queries: int | None = None
    train_ways: int | None = None
    iterations: int = 5000
    train_seconds: float | None = None
    meta_batch: int = 16
    validate_every: int = 500
    validation_episodes: int = 200
    test_episodes: int = 600
    split_seed: int = 0
    backbone: str = "omniglot-cnn"
    hidden: int = 64
    normalization: str = "support"
    precision: str = "float32"

    def __post_init__(self) -> None:
        at_least = dict.fromkeys(("shots", "queries", "iterations", "meta_batch", "validate_every"), 1)
        at_least |= {"ways": 2, "validation_episodes": 1, "test_episodes": 2, "hidden": 1, "split_seed": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, least in {"train_ways": 2, "train_queries": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.train_seconds is not None and self.train_seconds <= 0:
            raise InputError(f"train_seconds must be positive, got {self.train_seconds}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One method trained once with one seed within an experiment; ``options`` go to the method."""

    experiment: Experiment
    method: str
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the run, used for its files."""
        return f"{self.method}-seed{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """The run as plain JSON values, as a record stores it."""
        return {**asdict(self), "options": dict(self.options)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Run:
        """Inverse of :meth:`to_dict`."""
        return cls(**{**values, "experiment": Experiment(**values["experiment"])})
