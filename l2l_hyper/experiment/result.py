"""What one run measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Le, MinLen

__all__ = ["ControlScores", "Entries", "MetricInfo", "Name", "Point", "Result", "ScoresAtShots"]

_Count = Annotated[int, Ge(0), Le(10**15)]
_Number = Annotated[float, Ge(-1e100), Le(1e100)]  # sums and squares of which are finite
_Share = Annotated[float, Ge(0), Le(1)]
_Shots = Annotated[int, Ge(1), Le(10**15)]
Name = Annotated[str, MinLen(1)]


class Entries:
    """Entries of a file: each is of its declared type and within its range, and there is no other."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}


@dataclass(frozen=True, kw_only=True)
class MetricInfo(Entries):
    """What the scores of a result are.

    Attributes:
        name: as tables print it.
        higher_is_better: which way is better.
        percent: whether scores are shares from 0 to 1, which tables print in percent.
    """

    name: Name = "accuracy"
    higher_is_better: bool = True
    percent: bool = True


@dataclass(frozen=True, kw_only=True)
class Point(Entries):
    """One point of a training or validation curve.

    Attributes:
        iteration: iterations of training so far.
        seconds: seconds of training so far.
        loss: mean loss; ``None`` where it is not finite.
        score: mean score.
        half_width: half width of the score's 95 % interval over episodes, where there are several.
    """

    iteration: _Count
    seconds: _Number
    loss: _Number | None
    score: _Number
    half_width: _Number | None = None


@dataclass(frozen=True, kw_only=True)
class ScoresAtShots(Entries):
    """What the tested weights reach with another number of shots than the experiment's ``shots``.

    Attributes:
        shots: support samples per class.
        scores: score of every test episode.
        losses: loss of every test episode.
        manifest: what the episodes are.
    """

    shots: _Shots
    scores: list[_Number]
    losses: list[_Number | None]
    calibration_error: _Share | None = None
    manifest: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ControlScores(Entries):
    """What the tested weights reach under a control of the method, such as with what another task generated.

    Attributes:
        control: its name.
        shots: support samples per class.
        scores: score of the first test episodes.
    """

    control: str
    shots: _Shots
    scores: list[_Number]


@dataclass(frozen=True, kw_only=True)
class Result(Entries):
    """What one run measured.

    Attributes:
        metric: what the scores are.
        scores: score of every test episode, in the units of the metric (accuracies are fractions); empty when the run
            was not tested.
        losses: loss of every test episode.
        validation: one point per look at the validation episodes.
        training: the episodes trained on between two such looks.
        selected_iteration: iteration whose weights were tested.
        best_validation_score: the validation score that selected it.
        iterations: iterations of training.
        episodes: episodes seen in training.
        seconds_to_train: seconds of training, validation not counted.
        adaptation_ms: median milliseconds to adapt to one task; ``None`` where it was not measured.
        peak_memory_mb: peak memory of training in MiB; ``None`` where the machine could not tell.
        parameters: numbers of parameters: "meta" (all that meta-training learns), "backbone", "generated" (the task's
            own).
        calibration_error: expected calibration error of all test queries, see
            :class:`~l2l_hyper.experiment.evaluation.Calibration`; ``None`` in regression.
        multiply_adds_per_query: what a query costs once its task is adapted to; ``None`` where it was not counted.
        manifest: what the episodes are; two results compare only if its "hash" is equal.
        normalization: the statistics that normalization layers used.
        processes: number of processes that shared the run.
        other_shots: the same for the other ``test_shots``, see :meth:`Record.at`.
        controls: scores under the controls of the method, see :attr:`~l2l_hyper.methods.Method.controls`.
        pretrained: SHA-256 of the file of the weights that training started from, if there was one.
        trained_on: the tasksets of the training, where they are not those of the test.
    """

    metric: MetricInfo = field(default_factory=MetricInfo)
    scores: list[_Number] = field(default_factory=list)
    losses: list[_Number | None] = field(default_factory=list)
    validation: list[Point]
    training: list[Point]
    selected_iteration: _Count
    best_validation_score: _Number
    iterations: _Count
    episodes: _Count
    seconds_to_train: _Number
    adaptation_ms: _Number | None
    peak_memory_mb: _Number | None
    parameters: dict[str, _Count]
    multiply_adds_per_query: _Count | None = None
    calibration_error: _Share | None = None
    manifest: dict[str, Any]
    normalization: str
    processes: _Count = 1
    other_shots: list[ScoresAtShots] = field(default_factory=list)
    controls: list[ControlScores] = field(default_factory=list)
    pretrained: str | None = None
    trained_on: str | None = None

    @property
    def manifest_hash(self) -> str:
        """Hash of the class splits and episodes that the run was tested on."""
        return str(self.manifest["hash"])
