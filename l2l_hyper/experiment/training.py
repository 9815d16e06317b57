"""Meta-training and meta-testing of one run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data import Episodes, Metric, Taskset
from ..errors import InputError
from ..methods import Method
from ..report.statistics import episode_interval
from .checkpoint import load_checkpoint, save_checkpoint
from .config import Run
from .distributed import from_first, is_first, seed_each, share, sum_over_processes, world_size
from .evaluation import adaptation_milliseconds, evaluate_on
from .memory import peak_memory_mb, reset_peak_memory, tasks_at_once
from .parts import Parts, training_episodes
from .records import MetricInfo, Point, Result
from .trial import count_generated, require_contract

__all__ = ["Progress", "Step", "train_and_test"]


@dataclass(frozen=True)
class Step:
    """How far training is: ``iteration`` of ``total``, after ``seconds``, with the loss and score of the iteration."""

    iteration: int
    total: int
    seconds: float
    loss: float
    score: float
    metric: MetricInfo


Progress = Callable[[Step], None]
"""Called after each meta-training iteration."""


@dataclass
class _State:
    """Everything that training carries from one iteration to the next, but for the optimizer."""

    iteration: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    training: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None


def train_and_test(
    run: Run,
    parts: Parts,
    *,
    folder: Path | None,
    memory_limit_mb: float,
    test: bool = True,
    progress: Progress | None = None,
) -> tuple[Method, Result]:
    """Train one method with one seed, select its weights on validation episodes, test them.

    The loss of an iteration is the sum over its episodes, and its gradient is divided by their number, as learn2learn's
    scripts have it; Adam with a cosine schedule for every method.  A checkpoint is written at each look at the
    validation episodes, and the same call goes on from there.

    Within :func:`~l2l_hyper.experiment.distributed.process_group` the processes share the episodes of an iteration, of
    validation and of the test, and come to what one process would but for the order of sums; the first one's clock
    counts, and it alone writes checkpoints.

    Args:
        run: what to train.
        parts: the objects that the names in it stand for.
        folder: where ``checkpoints/<run.name>.pt`` lies; ``None`` to keep none.
        memory_limit_mb: the tasks of an iteration go in parts whose graphs stay within it; the sums of floating-point
            numbers then come in another order, and nothing else changes.
        test: whether to test the selected weights (a sweep does not).
        progress: called after each iteration.

    Returns:
        The method with the selected weights, and what was measured.

    Raises:
        InputError: for a run that cannot be, or cannot be shared by the processes, a method that breaks the contract, a
            damaged checkpoint, or a loss or score that is not finite.
    """
    e = run.experiment
    _require_shared(run)
    train, validation, tested = parts.tasksets
    first = train.batch([0], **training_episodes(e)).to(parts.device)
    last = tested.batch([0], ways=e.ways, shots=e.shots, queries=e.queries).to(parts.device)
    model = parts.model(run.seed, first)
    backbone_parameters = sum(p.numel() for p in model.parameters())
    method = parts.method(run, model)
    autocast = torch.autocast(parts.device.type, torch.bfloat16, enabled=e.precision == "bfloat16")
    with autocast:
        require_contract(method, run.method, first)
        at_once = tasks_at_once(method, first, memory_limit_mb)
    metric = parts.metric or first.metric
    lr = float(getattr(parts.methods[run.method].complete(run.options), "lr", 3e-3))
    trainer = _Trainer(run, method, train, validation, metric, folder, at_once, autocast, lr)
    trainer.train(progress)
    state = trainer.state
    if state.best is None or not math.isfinite(state.best["score"]):
        raise InputError(f"{run.name}: expected a finite {metric.name} on the validation episodes, got none")
    method.load_state_dict(state.best["weights"])
    with autocast:
        adaptation_ms = from_first(lambda: adaptation_milliseconds(method, last))
        generated = count_generated(method, last)
    losses, scores = trainer.evaluate(tested, e.test_episodes) if test else ([], [])
    if not all(map(math.isfinite, scores)):
        raise InputError(f"{run.name}: expected a finite {metric.name} on every test episode, got others")
    result = Result(
        metric=_info(metric),
        scores=scores,
        losses=list(losses),
        validation=[Point(**point) for point in state.validation],
        training=[Point(**point) for point in state.training],
        selected_iteration=state.best["iteration"],
        best_validation_score=state.best["score"],
        iterations=state.iteration,
        episodes=state.iteration * e.meta_batch,
        seconds_to_train=state.seconds,
        adaptation_ms=adaptation_ms,
        peak_memory_mb=state.peak_memory_mb,
        parameters={
            "meta": sum(p.numel() for p in trainer.parameters),
            "backbone": backbone_parameters,
            "generated": generated,
        },
        manifest=parts.manifest,
        normalization=e.normalization,
        processes=world_size(),
    )
    return method, result


class _Trainer:
    def __init__(
        self,
        run: Run,
        method: Method,
        train: Taskset,
        validation: Taskset,
        metric: Metric,
        folder: Path | None,
        at_once: int,
        autocast: torch.autocast,
        lr: float,
    ) -> None:
        self.run, self.method, self.metric, self.lr = run, method, metric, lr
        self.training_set, self.validation_set = train, validation
        self.checkpoint = None if folder is None else folder / "checkpoints" / f"{run.name}.pt"
        self.at_once, self.autocast = at_once, autocast
        self.state = _State()
        self.device = next(method.parameters()).device
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, fused=True)
        self.window: list[tuple[float, float]] = []  # losses and scores since the last look at validation

    def evaluate(self, taskset: Taskset, episodes: int) -> tuple[list[float], list[float]]:
        """Losses and scores of validation or test episodes, which the processes share."""
        e, mine = self.run.experiment, share(range(episodes))

        def draw(positions: range) -> Episodes:
            indices = mine[positions.start : positions.stop]
            return taskset.batch(indices, ways=e.ways, shots=e.shots, queries=e.queries).to(self.device)

        values = torch.zeros(2, episodes, dtype=torch.float64)
        batch_size = min(self.at_once, len(share(range(e.meta_batch))))
        with self.autocast:
            measured = evaluate_on(self.method, draw, len(mine), self.metric, batch_size=batch_size)
        values[:, mine.start : mine.stop] = torch.tensor(measured, dtype=torch.float64)
        sum_over_processes([values])
        losses, scores = values.tolist()
        return losses, scores

    def train(self, progress: Progress | None) -> None:
        e, metric = self.run.experiment, _info(self.metric)
        self._load()
        reset_peak_memory(self.device)
        while not self._finished():
            loss, score = self._iterate()
            if progress is not None:
                progress(Step(self.state.iteration, e.iterations, self.state.seconds, loss, score, metric))
            self.window.append((loss, score))
            if self.state.iteration % e.validate_every == 0 or self._finished():
                self._validate()
                if is_first():
                    self._save()

    def _share_done(self) -> float:
        e = self.run.experiment
        if e.train_seconds is not None:
            return self.state.seconds / e.train_seconds
        return self.state.iteration / e.iterations

    def _finished(self) -> bool:
        return self._share_done() >= 1

    def _iterate(self) -> tuple[float, float]:
        begin = time.perf_counter()
        e, state = self.run.experiment, self.state
        indices = range(state.iteration * e.meta_batch, (state.iteration + 1) * e.meta_batch)
        # Seed 0 is that of the validation and test splits; they hold other classes all the same.
        episodes = self.training_set.batch(share(indices), seed=self.run.seed, **training_episodes(e))
        episodes = episodes.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * (1 + math.cos(math.pi * self._share_done())) / 2
        self.optimizer.zero_grad()
        seed_each(self.run.seed, state.iteration)
        total_loss = total_score = torch.zeros((), device=self.device)
        for part in episodes.split(self.at_once):
            with self.autocast:
                adapted = self.method.adapt(part.support_set)
                outputs = self.method.predict(adapted, part.query)
                losses = self.method.loss(adapted, outputs, part)
                scores = self.metric.of(outputs.detach(), part.query_labels)
            losses.sum().backward()
            total_loss = total_loss + losses.detach().sum()
            total_score = total_score + scores.sum()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        sum_over_processes([*gradients, total_loss, total_score])
        loss = float(total_loss) / e.meta_batch
        if not math.isfinite(loss):
            raise InputError(self._not_finite(loss, episodes))
        for gradient in gradients:
            gradient /= e.meta_batch
        self.optimizer.step()
        state.iteration += 1
        state.seconds += from_first(lambda: time.perf_counter() - begin)
        return loss, float(total_score) / e.meta_batch

    def _not_finite(self, loss: float, episodes: Episodes) -> str:
        bad = torch.zeros(self.run.experiment.meta_batch)
        for i, one in zip(share(range(len(bad))), episodes, strict=True):
            bad[i] = not (one.support.isfinite().all() and one.query.isfinite().all())
        sum_over_processes([bad])
        first = int(bad.argmax())
        where = f"the samples of episode {first} of the batch are not finite" if bad.any() else "the samples are finite"
        kept = "no checkpoint yet"
        if self.checkpoint is not None and self.checkpoint.exists():
            last = self.state.validation[-1]["iteration"] if self.state.validation else 0
            kept = f"the checkpoint of iteration {last} stays"
        return (
            f"{self.run.name}: expected a finite loss, got {loss} at iteration {self.state.iteration} ({where}); "
            f"{kept}; try a smaller learning rate"
        )

    def _validate(self) -> None:
        e, state = self.run.experiment, self.state
        losses, scores = self.evaluate(self.validation_set, e.validation_episodes)
        interval = episode_interval(scores)
        now = {"iteration": state.iteration, "seconds": state.seconds}
        loss, score = (sum(values) / len(values) for values in zip(*self.window, strict=True))
        self.window = []
        state.training.append({**now, "loss": loss, "score": score})
        half_width = interval.half_width if len(scores) > 1 else None
        mean_loss = sum(losses) / len(losses)
        state.validation.append({**now, "loss": mean_loss, "score": interval.mean, "half_width": half_width})
        if state.best is None or self._better(interval.mean, state.best["score"]):
            weights = {name: value.detach().clone() for name, value in self.method.state_dict().items()}
            state.best = {"iteration": state.iteration, "score": interval.mean, "weights": weights}
        state.peak_memory_mb = max(state.peak_memory_mb, peak_memory_mb(self.device))

    def _better(self, score: float, than: float) -> bool:
        return math.isnan(than) or (score > than if self.metric.higher_is_better else score < than)

    def _save(self) -> None:
        if self.checkpoint is not None:
            saved = {
                "run": self.run.to_dict(),
                "state": vars(self.state),
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": torch.get_rng_state(),
            }
            save_checkpoint(self.checkpoint, saved)

    def _load(self) -> None:
        path, cpu = self.checkpoint, torch.device("cpu")  # as all processes can hold it
        if path is None:
            return
        saved = from_first(lambda: load_checkpoint(path, cpu) if path.exists() else None)
        if saved is None:
            return
        if saved.get("run") != self.run.to_dict():
            raise InputError(
                f"expected the checkpoint of this run in {path}, got one of another configuration; "
                "use another output folder, or remove the file"
            )
        self.state = _State(**saved["state"])
        self.method.load_state_dict(saved["method"])
        self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])


def _info(metric: Metric) -> MetricInfo:
    return MetricInfo(name=metric.name, higher_is_better=metric.higher_is_better, percent=metric.percent)


def _require_shared(run: Run) -> None:
    e, processes = run.experiment, world_size()
    if e.meta_batch < processes:
        raise InputError(f"meta_batch must be at least the number of processes, {processes}, got {e.meta_batch}")
    if e.normalization == "running" and processes > 1:
        raise InputError(
            "normalization 'running' averages over tasks in the order in which one process meets them, "
            f"got {processes} processes; use support or transductive, or one process"
        )
