"""Meta-training and meta-testing of one run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data import TensorTaskset
from ..errors import InputError
from ..methods import Method
from ..methods.second_network import SecondNetwork
from ..settings import defaults
from ..statistics import episode_interval
from ..stopping import Stopped, held
from .checkpoint import Checkpoint, Damaged, State, checkpoint_path, load_checkpoint, save_checkpoint
from .config import Run
from .distributed import from_first, is_first, seed_each, share, sum_over_processes, world_size
from .encoder import read_encoder
from .memory import peak_memory_mb, reset_peak_memory, tasks_at_once
from .parts import Parts
from .recipe.classification import attach_classifier, with_rotation_classes
from .recipe.encoding import encoded
from .recipe.objective import Objective, training_episodes
from .recipe.optimizer import backbone_parameters, learning_rate_factor, make_optimizer, set_learning_rate
from .recipe.pretrained import read_pretrained
from .recipe.subclasses import with_subclasses
from .result import MetricInfo, Point, Result
from .resume import Learned
from .testing import Testing, in_precision, tested_form
from .trial import require_contract

__all__ = ["Progress", "Step", "train_and_test"]


@dataclass(frozen=True)
class Step:
    """How far training is.

    Attributes:
        iteration: iterations so far.
        total: iterations of the whole.
        seconds: of training so far.
        loss: of the iteration.
        score: of the iteration.
        metric: what the score is.
        validation: what the validation episodes said after the iteration, where that is the news.
    """

    iteration: int
    total: int
    seconds: float
    loss: float
    score: float
    metric: MetricInfo
    validation: Point | None = None


Progress = Callable[[Step], None]
"""Called after each meta-training iteration (on a GPU after some) and after each look at the validation episodes."""

_log = logging.getLogger(__name__)
_LOOK_EVERY = 20  # iterations on a GPU between two looks at its numbers, for which all that is queued has to be done
_READ = 4  # encoders of whose features of all training samples the last ones are kept


def train_and_test(
    run: Run, parts: Parts, *, folder: Path | None, test: bool = True, progress: Progress | None = None
) -> tuple[Method, Result]:
    """Train one method with one seed, select its weights on validation episodes, test them.

    The loss of an iteration is that of an :class:`~l2l_hyper.experiment.recipe.objective.Objective`, and the rest is as
    the :class:`~l2l_hyper.experiment.recipe.Recipe` says.  A checkpoint is written at each look at the validation
    episodes, and the same call goes on from there; where it is damaged, a warning is logged and training begins again.
    The tasks of an iteration go in parts whose graphs stay within the plan's memory limit; only the order of sums of
    floating-point numbers depends on it.

    Within :func:`~l2l_hyper.experiment.distributed.process_group` the processes share the episodes of an iteration, of
    validation and of the test, and come to what one process would but for the order of sums; the first one's clock
    counts, and it alone writes checkpoints.

    Args:
        run: what to train.
        parts: the objects that the names in it stand for.
        folder: of the comparison, where the checkpoint lies; ``None`` to keep none.
        test: whether to test the selected weights (a sweep does not).
        progress: see :data:`Progress`.

    Returns:
        The method with the selected weights, and what was measured.

    Raises:
        InputError: for a run that cannot be, or cannot be shared by the processes, a method that breaks the contract, a
            checkpoint of another configuration, a disk that takes none, or a loss or score that is not finite.
    """
    _require_shared(run)
    training, e = _Training(run, parts, folder), run.experiment
    reset_peak_memory(parts.device)
    try:
        while training.share_done < 1 or training.validation_is_due:
            if training.validation_is_due:
                step: Step | None = training.validate()
            else:
                with held():  # a signal to stop waits until the iteration is whole
                    step = training.iterate()
            if progress is not None and step is not None:
                progress(step)
    except Stopped as stopped:
        stopped.saved = training.keep()
        raise
    return training.method, training.result((e.test_shots or (e.shots,)) if test else ())


class _Training:
    """A run, how far its training is, and all that takes part in it; goes on from the checkpoint if there is one."""

    def __init__(self, run: Run, parts: Parts, folder: Path | None) -> None:
        e = run.experiment
        self.run, self.parts, self.device = run, parts, parts.device
        self.on_gpu = self.device.type != "cpu"
        self.checkpoint = None if folder is None else checkpoint_path(folder, run)
        train: Any = with_rotation_classes(parts.tasksets.train) if e.rotation_classes else parts.tasksets.train
        largest = {**training_episodes(e), "shots": max(e.train_shots or (e.shots,))}
        episodic = train
        if e.subclass_encoder is not None:
            episodic = _divided(train, run, parts, largest["shots"] + largest["queries"])
        first = episodic.batch([0], **largest).to(self.device)
        last = parts.tasksets.test.batch([0], **tested_form(e, e.shots)).to(self.device)
        self.model = parts.model(run, first)
        start = parts.weights_of(run, "pretrained", folder) or e.pretrained
        pretrained = read_pretrained(start, run.seed) if start else None
        if pretrained is not None:
            pretrained.load_backbone(self.model)
        elif (own := backbone_parameters(self.model)) and not any(p.requires_grad for p in own):
            raise InputError(
                "expected pretrained weights for a backbone that is frozen, got none; name them by pretrained"
            )
        self.method = method = parts.method(run, self.model, folder)
        if e.class_batch:
            attach_classifier(method, train, e.classifier)
        if pretrained is not None:
            pretrained.load_heads(method)
        if e.encode_once and method.reader is not None:
            path, layers = parts.weights_of(run, "encoder", folder), run.options.get("encoder_layers", "")
            episodic = episodic.with_encoded(_encoded(train, run, parts, path, layers, lambda: method.reader))
        self.autocast = in_precision(e, self.device)
        with self.autocast:
            require_contract(method, run.method, first)
            at_once = tasks_at_once(method, first, parts.plan.memory_limit)
        self.metric = parts.metric or first.metric
        self.testing = Testing(
            run=run, parts=parts, method=method, model=self.model, metric=self.metric, at_once=at_once, first=last
        )
        self.lr = float(getattr(parts.methods[run.method].complete(run.options), "lr", 3e-3))
        self.objective = Objective(
            run,
            method,
            episodic,
            self.metric,
            classes=train,
            at_once=at_once,
            device=self.device,
            autocast=self.autocast,
        )
        optimizer = make_optimizer(e, self.lr, method, backbone_parameters(self.model))
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        averaged = None
        if e.average is not None:
            averaged = AveragedModel(method, multi_avg_fn=get_ema_multi_avg_fn(e.average), use_buffers=True)
        self.learned = Learned(method, optimizer, averaged)
        self.state = State(pretrained=None if pretrained is None else pretrained.sha256)
        self.sample_shape, self.outputs = parts.form(first)
        self.unread: list[tuple[int, Tensor]] = []  # iterations whose loss and score may still be on their way
        self._load()

    @property
    def share_done(self) -> float:
        """How much of the training is done, from 0 to 1."""
        e = self.run.experiment
        if e.train_seconds is not None:
            return self.state.seconds / e.train_seconds
        return self.state.iteration / e.iterations

    @property
    def validation_is_due(self) -> bool:
        """Whether to look at the validation episodes before anything else."""
        looked = not (self.state.window or self.unread)
        return not looked and (self.state.iteration % self.run.experiment.validate_every == 0 or self.share_done >= 1)

    def iterate(self) -> Step | None:
        """One iteration; ``None`` while a GPU is still at it."""
        begin = time.perf_counter()
        e, state = self.run.experiment, self.state
        optimizer, averaged = self.learned.optimizer, self.learned.averaged
        set_learning_rate(optimizer, self.lr * learning_rate_factor(e, self.share_done))
        optimizer.zero_grad()
        seed_each(self.run.seed, state.iteration)
        loss, score = self.objective.backward(state.iteration)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        sum_over_processes([*gradients, loss, score])
        self.unread.append((state.iteration, torch.stack([loss, score.to(loss)])))
        if not self.on_gpu or len(self.unread) == _LOOK_EVERY:
            self._read()
        for gradient in gradients:
            gradient /= e.meta_batch
        optimizer.step()
        if averaged is not None:
            averaged.update_parameters(self.method)
        state.iteration += 1
        state.seconds += from_first(lambda: time.perf_counter() - begin)
        if self.unread:
            return None
        return Step(state.iteration, e.iterations, state.seconds, *state.window[-1], self.testing.info)

    def validate(self) -> Step:
        """Look at the validation episodes, keep the best weights so far, and write the checkpoint."""
        e, state = self.run.experiment, self.state
        self._read()
        averaged = self.learned.averaged
        selected = self.method if averaged is None else cast(Method, averaged.module)
        validation = self.parts.tasksets.validation
        measured = self.testing.evaluate(validation, range(e.validation_episodes), e.shots, method=selected)
        scores = measured.scores.tolist()
        interval = episode_interval(scores)
        if not math.isfinite(interval.mean):
            raise InputError(
                f"{self.run.name}: expected a finite {self.metric.name} on the validation episodes, got "
                f"{interval.mean} after iteration {state.iteration}; try a smaller learning rate"
            )
        with held():  # what follows is done as a whole
            now: dict[str, Any] = {"iteration": state.iteration, "seconds": state.seconds}
            loss, score = (sum(values) / len(values) for values in zip(*state.window, strict=True))
            state.window = []
            state.training.append(Point(**now, loss=loss, score=score))
            half_width = interval.half_width if len(scores) > 1 else None
            mean_loss = float(measured.losses.mean())
            kept_loss = mean_loss if math.isfinite(mean_loss) else None
            point = Point(**now, loss=kept_loss, score=interval.mean, half_width=half_width)
            state.validation.append(point)
            if state.best is None or self._better(point.score, state.best.score):
                state.best = point
                self.learned.selected = {n: value.detach().clone() for n, value in selected.state_dict().items()}
            state.peak_memory_mb = max(state.peak_memory_mb, peak_memory_mb(self.device))
            from_first(self._save)  # so that all stop where the first one cannot write
        return Step(state.iteration, e.iterations, state.seconds, loss, score, self.testing.info, point)

    def keep(self) -> str:
        """Write the checkpoint of a training that is stopped between two iterations; says so for the message."""
        if self.checkpoint is None or not is_first() or not self.state.iteration:
            return ""
        if self.state.window or self.unread:  # else it has just been written
            self._read()
            self._save()
        return f", {self.run.name} saved at iteration {self.state.iteration}"

    def result(self, shots_tested: Sequence[int]) -> Result:
        """What the selected weights, which the method then has, reach on the test episodes, and what training took."""
        if self.learned.selected:
            self.method.load_state_dict(self.learned.selected)
        return self.testing.result(self.state, shots_tested)

    def _read(self) -> None:
        """Take losses and scores into the window; raise ``InputError`` at a loss that is not finite."""
        for iteration, totals in self.unread:
            loss, score = (total / self.run.experiment.meta_batch for total in totals.tolist())
            if not math.isfinite(loss):
                raise InputError(self._not_finite(loss, iteration))
            self.state.window.append((loss, score))
        self.unread = []

    def _not_finite(self, loss: float, iteration: int) -> str:
        episodes = self.objective.episodes(iteration)
        bad = torch.zeros(self.run.experiment.meta_batch)
        for i, one in zip(share(range(len(bad))), episodes, strict=True):
            bad[i] = not (one.support.isfinite().all() and one.query.isfinite().all())
        sum_over_processes([bad])
        first = int(bad.argmax())
        where = f"the samples of episode {first} of the batch are not finite" if bad.any() else "the samples are finite"
        kept = "no checkpoint yet"
        if self.checkpoint is not None and self.checkpoint.exists():
            last = self.state.validation[-1].iteration if self.state.validation else 0
            kept = f"the checkpoint of iteration {last} stays"
        return (
            f"{self.run.name}: expected a finite loss, got {loss} at iteration {iteration} ({where}); "
            f"{kept}; try a smaller learning rate"
        )

    def _better(self, score: float, than: float) -> bool:
        return score > than if self.metric.higher_is_better else score < than

    def _save(self) -> None:
        if self.checkpoint is not None:
            checkpoint = Checkpoint(
                run=self.run,
                sample_shape=self.sample_shape,
                outputs=self.outputs,
                state=self.state,
                tensors=self.learned.tensors(finished=self.share_done >= 1 and not self.state.window),
            )
            save_checkpoint(self.checkpoint, checkpoint)

    def _load(self) -> None:
        saved = from_first(self._saved)
        if saved is not None:
            self.state = saved.state
            self.learned.load(saved.tensors)

    def _saved(self) -> Checkpoint | None:
        """The checkpoint of this run if there is one; one that is damaged is as none."""
        path = self.checkpoint
        if path is None or not path.exists():
            return None
        try:
            saved = load_checkpoint(path)
            held = saved.run.completed(defaults(self.parts.methods[self.run.method].options))
            if held.to_dict() == self.run.to_dict():
                self.learned.require_fit(saved.tensors, finished=saved.finished)
                return saved
        except Damaged as damaged:
            _log.warning("%s: %s; it is trained from the beginning", self.run.name, damaged)
            return None
        raise InputError(
            f"expected the checkpoint of this run in {path}, got one of another configuration; "
            "use another output folder, or remove the file"
        )


def _encoded(
    train: Any, run: Run, parts: Parts, path: str, layers: str, encoder: Callable[[], SecondNetwork | None]
) -> Tensor:
    """What an encoder reads of all training samples, which rows and seeds share where they name the same file."""
    key = path.replace("{seed}", str(run.seed)), layers
    if key not in parts.read or not path:
        parts.read.pop(key, None)
        for oldest in [*parts.read][: 1 - _READ]:
            del parts.read[oldest]
        parts.read[key] = encoded(train, cast(SecondNetwork, encoder()), parts.device)
    return parts.read[key]


def _divided(train: Any, run: Run, parts: Parts, samples: int) -> TensorTaskset:
    """The training taskset with its classes divided by the subclass encoder."""
    e, path = run.experiment, str(run.experiment.subclass_encoder)
    shape = tuple(train.batch([0], shots=1, queries=1).support.shape[2:])
    features = _encoded(
        train, run, parts, path, "", lambda: SecondNetwork(read_encoder(path, run.seed, shape)).to(parts.device)
    )
    return with_subclasses(train, features, e.subclasses, samples=samples)


def _require_shared(run: Run) -> None:
    e, processes = run.experiment, world_size()
    if e.meta_batch < processes:
        raise InputError(f"meta_batch must be at least the number of processes, {processes}, got {e.meta_batch}")
    if e.normalization == "running" and processes > 1:
        raise InputError(
            "normalization 'running' averages over tasks in the order in which one process meets them, "
            f"got {processes} processes; use support or transductive, or one process"
        )
    if e.class_batch and processes > 1:
        raise InputError(
            "the images of a class batch are normalized together, in one process, "
            f"got class_batch={e.class_batch} and {processes} processes; use class_batch=0, or one process"
        )
