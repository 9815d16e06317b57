"""What a comparison is: the settings that all methods share, and one run of one method within it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt

from ..errors import InputError
from ..files import plain
from ..settings import Count, Name, Natural, Positive, Seed, Ways, check_fields
from .recipe import Recipe

__all__ = ["Experiment", "Run", "renamed", "renamed_options"]


@dataclass(frozen=True, kw_only=True)
class Experiment(Recipe):
    """The settings that every method of a comparison shares; two records compare only if these are equal.

    Each field is a flag of ``l2l-hyper compare``, a key of a preset and a field of a record; those of the recipe, by
    which methods are trained, come from :class:`~l2l_hyper.experiment.recipe.Recipe`.

    Attributes:
        tasksets: name of the tasksets, ``folder:PATH`` or ``package.module:function``.
        tasksets_options: further options of the tasksets, by name.
        ways: classes per episode, in validation and test (and in training unless ``train_ways`` is given).
        shots: support samples per class, in validation and test (and in training unless train_shots is given).
        test_shots: all numbers of support samples per class to test with, shots among them; shots alone if not given.
        queries: query samples per class.
        unbalanced_queries: α of the Dirichlet distribution of the shares of test queries that classes have, see
            :mod:`~l2l_hyper.data.unbalanced`; 0 for as many of each class.
        train_queries: query samples per class in training; as ``queries`` if not given.
        train_ways: classes per episode in training; as ``ways`` if not given.
        iterations: meta-training iterations (optimizer steps); ignored when ``train_seconds`` is given.
        train_seconds: train each method for this many seconds instead, for comparisons at equal time.
        meta_batch: episodes per iteration.
        validate_every: iterations between two looks at the validation episodes (and two checkpoints).
        validation_episodes: episodes that select the iteration whose weights are tested.
        test_episodes: episodes of the test table, the same for every method.
        split_seed: seed of the class split and of the validation and test episodes.
        metric: name of the metric of the table, or ``package.module:object``; that of the tasksets if not given.
        backbone: name of the network, or ``package.module:function``.
        channels: channels per layer of the backbone, where it has such an option.
        backbone_options: further options of the backbone, by name.
        normalization: the statistics that normalization layers use: support, transductive or running.
        precision: number format, float32 or bfloat16 (torch.autocast to it, for a GPU; on a CPU it is slower).

    Raises:
        InputError: for a value of another type or out of its range.
    """

    tasksets: Name = "glyphs"
    tasksets_options: dict[str, Any] = field(default_factory=dict)
    ways: Ways = 5
    shots: Count = 1
    test_shots: tuple[Count, ...] | None = None
    queries: Count = 15
    unbalanced_queries: Natural = 0
    train_queries: Count | None = None
    train_ways: Ways | None = None
    iterations: Count = 5000
    train_seconds: Positive | None = None
    meta_batch: Count = 16
    validate_every: Count = 500
    validation_episodes: Count = 200
    test_episodes: Ways = 600
    split_seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    metric: Name | None = None
    backbone: Name = "omniglot-cnn"
    channels: Count = 64
    backbone_options: dict[str, Any] = field(default_factory=dict)
    normalization: Literal["support", "transductive", "running"] = "support"
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_fields(self)
        if bool(self.subclasses) != bool(self.subclass_encoder):
            raise InputError(
                f"expected subclasses and subclass_encoder together, got subclasses={self.subclasses} and "
                f"subclass_encoder={self.subclass_encoder}; give both or neither"
            )
        if self.test_shots is not None and self.shots not in self.test_shots:
            raise InputError(f"test_shots must have shots, {self.shots}, among them, got {self.test_shots}")

    def spelled_out(self) -> Experiment:
        """The same with the ways, shots and queries of the training, also where they are those of the test."""
        return replace(
            self,
            train_ways=self.train_ways or self.ways,
            train_shots=self.train_shots or (self.shots,),
            train_queries=self.train_queries or self.queries,
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One method trained once with one seed within an experiment; ``options`` go to the method."""

    experiment: Experiment
    method: Name
    seed: Seed = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, without=("experiment", "options"))

    @property
    def name(self) -> str:
        """Name of the run, used for its files."""
        method = re.sub(r"[^\w.+-]", "_", self.method)
        return f"{method}-seed{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """The run as plain JSON values, as a record stores it."""
        return plain({**asdict(self), "options": self.options})

    def completed(self, defaults: Mapping[str, Any]) -> Run:
        """The run with the defaults of options that it lacks, as one of a record from before they came does."""
        return replace(self, options={**defaults, **self.options})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Run:
        """Inverse of :meth:`to_dict`, which also reads the keys that earlier versions wrote."""
        experiment = Experiment(**renamed(values["experiment"]))
        options = renamed_options(values["method"], values["options"])
        return cls(experiment=experiment, method=values["method"], seed=values["seed"], options=options)


_RENAMED = {"hidden": "channels"}
_RENAMED_OPTIONS = {"hyper-adapter": {"start": "base_learner", "change": "modulation"}}
_RENAMED_VALUES = {("hyper-adapter", "base_learner", "base"): "own"}


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an experiment by their present names.

    Raises:
        InputError: when a setting is there under its former and its present name.
    """
    return _renamed(settings, _RENAMED)


def renamed_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method by their present names and values; a list holds values to try."""
    changed = _renamed(options, _RENAMED_OPTIONS.get(method, {}))

    def value(name: str, old: Any) -> Any:
        if isinstance(old, list):
            return [value(name, one) for one in old]
        return _RENAMED_VALUES.get((method, name, old), old) if isinstance(old, str) else old

    return {name: value(name, old) for name, old in changed.items()}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    for old, new in names.items():
        if old in values and new in values:
            raise InputError(f"expected {new}, or {old} as it was called before, got both: keep {new}")
    return {names.get(name, name): value for name, value in values.items()}
