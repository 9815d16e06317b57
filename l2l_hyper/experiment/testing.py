"""What a method reaches on validation and test episodes, which the processes of a run share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..data import Episodes, Metric, Taskset
from ..errors import InputError
from ..methods import Method
from .checkpoint import State
from .config import Experiment, Run
from .distributed import from_first, share, sum_over_processes, world_size
from .evaluation import Measured, adaptation_milliseconds, evaluate_on
from .features_once import features_made_once
from .parts import Parts
from .result import ControlScores, MetricInfo, Result, ScoresAtShots
from .trial import count_generated, multiply_adds_per_query

__all__ = ["Testing", "in_precision", "tested_form"]

_CONTROL_EPISODES = 2000  # at most, for each control of a method
_LARGEST = 64  # episodes that go together on a GPU


def in_precision(e: Experiment, device: torch.device) -> torch.autocast:
    """Within it a method runs in the number format of an experiment."""
    return torch.autocast(device.type, torch.bfloat16, enabled=e.precision == "bfloat16")


def tested_form(e: Experiment, shots: int) -> dict[str, int]:
    """The form of validation and test episodes, as tasksets take it."""
    return {"ways": e.ways, "shots": shots, "queries": e.queries}


@dataclass(frozen=True, kw_only=True)
class Testing:
    """Tests the method of a run.

    Attributes:
        run: which, with the form of its episodes.
        parts: the objects that the names in it stand for.
        method: what is tested.
        model: its backbone.
        metric: what scores it.
        at_once: how many tasks may go together.
        first: a test episode.
    """

    run: Run
    parts: Parts
    method: Method
    model: nn.Module
    metric: Metric
    at_once: int
    first: Episodes

    @property
    def info(self) -> MetricInfo:
        """The metric, as a record has it."""
        metric = self.metric
        return MetricInfo(name=metric.name, higher_is_better=metric.higher_is_better, percent=metric.percent)

    def evaluate(
        self,
        taskset: Taskset,
        episodes: range,
        shots: int,
        *,
        method: Method | None = None,
        controls: Sequence[str] = (),
    ) -> Measured:
        """What the method, or another one in its place, reaches on these episodes, and what under controls."""
        mine, meta_batch = share(episodes), share(range(self.run.experiment.meta_batch))
        device, form = self.parts.device, tested_form(self.run.experiment, shots)
        tested = self.method if method is None else method
        samples = len(mine) * form["ways"] * (form["shots"] + form["queries"])
        values = torch.zeros(2 + len(controls), len(episodes), dtype=torch.float64)
        with (
            in_precision(self.run.experiment, device),
            features_made_once(tested, taskset, samples, device) as shown,
        ):
            measured = evaluate_on(
                tested,
                shown,
                mine,
                self.metric,
                form=form,
                device=device,
                batch_size=min(self.at_once, _LARGEST if device.type != "cpu" else len(meta_batch)),
                controls=controls,
            )
        at = mine.start - episodes.start
        values[:, at : at + len(mine)] = torch.cat([measured.losses[None], measured.scores[None], measured.controls])
        sum_over_processes([values, measured.bins])
        return Measured(values[0], values[1], measured.bins, values[2:])

    def _tested(self, shots: int) -> Measured:
        """What the method reaches on the test episodes, and on the first of them what under its controls."""
        test, episodes, controls = self.parts.tasksets.test, self.run.experiment.test_episodes, self.method.controls
        few = min(episodes, _CONTROL_EPISODES) if controls else episodes
        first = self.evaluate(test, range(few), shots, controls=controls)
        if few == episodes:
            return first
        rest = self.evaluate(test, range(few, episodes), shots)
        losses, scores = torch.cat([first.losses, rest.losses]), torch.cat([first.scores, rest.scores])
        return Measured(losses, scores, first.bins + rest.bins, first.controls)

    def result(self, state: State, shots_tested: Sequence[int], *, trained_on: str | None = None) -> Result:
        """What the method reaches on the test episodes, and what its training took.

        Args:
            state: how it was trained.
            shots_tested: with how many support samples per class to test.
            trained_on: the tasksets of the training, where they are not those of the test.

        Raises:
            InputError: for a score that is not finite.
        """
        e, method = self.run.experiment, self.method
        if state.best is None:
            raise InputError(f"{self.run.name}: expected a look at the validation episodes, got none")
        with in_precision(self.run.experiment, self.parts.device):
            adaptation_ms = from_first(lambda: adaptation_milliseconds(method, self.first))
            generated = count_generated(method, self.first)
            multiply_adds = multiply_adds_per_query(method, self.first)
        measured = {shots: self._tested(shots) for shots in shots_tested}
        if not all(of.scores.isfinite().all() for of in measured.values()):
            raise InputError(f"{self.run.name}: expected a finite {self.metric.name} on every test episode, got others")
        controls = [
            ControlScores(control=control, shots=shots, scores=measured[shots].controls[k].tolist())
            for k, control in enumerate(method.controls)
            for shots in shots_tested
        ]
        manifests = self.parts.manifests
        own = measured.pop(e.shots, None)
        return Result(
            metric=self.info,
            scores=[] if own is None else own.scores.tolist(),
            losses=[] if own is None else own.losses.tolist(),
            calibration_error=None if own is None else own.calibration_error,
            validation=state.validation,
            training=state.training,
            selected_iteration=state.best.iteration,
            best_validation_score=state.best.score,
            iterations=state.iteration,
            episodes=state.iteration * e.meta_batch,
            seconds_to_train=state.seconds,
            adaptation_ms=adaptation_ms,
            peak_memory_mb=state.peak_memory_mb,
            parameters={
                "meta": sum(p.numel() for p in method.parameters() if p.requires_grad),
                "backbone": sum(p.numel() for p in self.model.parameters()),
                "generated": generated,
            },
            multiply_adds_per_query=multiply_adds,
            manifest=manifests[e.shots],
            normalization=self.parts.methods[self.run.method].normalization(self.run.options) or e.normalization,
            processes=world_size(),
            other_shots=[
                ScoresAtShots(
                    shots=shots,
                    scores=of.scores.tolist(),
                    losses=of.losses.tolist(),
                    calibration_error=of.calibration_error,
                    manifest=manifests[shots],
                )
                for shots, of in measured.items()
            ],
            controls=controls,
            pretrained=state.pretrained,
            trained_on=trained_on,
        )
