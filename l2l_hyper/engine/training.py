"""Meta-training and meta-testing of one run."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ..baselines import Episodic
from ..errors import InputError
from ..tasks import BenchmarkTasksets, Episodes, TensorTaskset, get_tasksets, manifest
from .backbones import BACKBONES
from .checkpoint import load_checkpoint, save_checkpoint
from .config import Experiment, Run
from .distributed import (
    first_then_others,
    from_first,
    is_first,
    seed_each,
    share,
    sum_over_processes,
    world_size,
)
from .evaluation import adaptation_milliseconds, evaluate, losses_and_accuracies
from .memory import peak_memory_mb, reset_peak_memory, tasks_at_once
from .methods import METHODS

__all__ = ["MEMORY_LIMIT_MB", "Progress", "train_and_test"]

MEMORY_LIMIT_MB = 2048.0


class Progress(Protocol):
    """Called after each meta-training iteration."""

    def __call__(self, iteration: int, total: int, seconds: float, loss: float, accuracy: float) -> None: ...


@dataclass
class _State:
    """Everything that training carries from one iteration to the next, but for the optimizer."""

    iteration: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    training: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] | None = None


def train_and_test(
    run: Run,
    *,
    folder: Path,
    data_root: str | Path,
    device: str = "cpu",
    memory_limit_mb: float = MEMORY_LIMIT_MB,
    test: bool = True,
    resume: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train one method with one seed, select its weights on validation episodes, test them.

    The loss of an iteration is the sum over episodes of the mean query cross-entropy, its gradient divided by the
    number of episodes, as learn2learn's scripts have it; Adam with a cosine schedule for every method.  A checkpoint is
    written at each look at the validation episodes, and the same call goes on from there.

    Within :func:`~l2l_hyper.engine.distributed.process_group` the processes share the episodes of an iteration, of
    validation and of the test, and come to what one process would but for the order of sums; the first one's clock
    counts, and it alone writes checkpoints.

    Args:
        run: what to train.
        folder: where ``checkpoints/<run.name>.pt`` lies.
        data_root: where the tasksets lie.
        device: "cpu", "cuda", ...
        memory_limit_mb: the tasks of an iteration go in parts whose graphs stay within it; the sums of floating-point
            numbers then come in another order, and nothing else changes.
        test: whether to test the selected weights (a sweep does not).
        resume: whether to go on from a checkpoint.
        progress: called after each iteration.

    Returns:
        The measured part of a record.

    Raises:
        InputError: for a run that cannot be, or cannot be shared by the processes, a damaged checkpoint, or a loss that
            is no longer finite.
    """
    experiment = run.experiment
    _check_names(run)
    _check_shared(run)
    place = _device(device)
    with first_then_others():
        tasksets, shared = _tasksets(run, data_root, place)
    model = _backbone(run, tasksets)
    backbone_parameters = sum(p.numel() for p in model.parameters())
    method = METHODS[run.method].build(model, run.options, experiment.normalization).to(place)  # type: ignore[arg-type]
    if place.type == "cpu":
        method.to(memory_format=torch.channels_last)  # convolutions are two to three times faster
    first = tasksets.train.episode(0, **_training_episodes(experiment))
    autocast = torch.autocast(place.type, torch.bfloat16, enabled=experiment.precision == "bfloat16")
    with autocast:
        at_once = tasks_at_once(method, first, memory_limit_mb)
    trainer = _Trainer(run, method, tasksets, folder / "checkpoints" / f"{run.name}.pt", at_once, autocast)
    trainer.train(resume, progress)
    state = trainer.state
    assert state.best is not None  # there is a look at the validation episodes after the last iteration
    method.load_state_dict(state.best["weights"])
    tested = tasksets.test.episode(0, ways=experiment.ways, shots=experiment.shots, queries=experiment.queries)
    with autocast:
        adaptation_ms = from_first(lambda: adaptation_milliseconds(method, tested))
    result: dict[str, Any] = {
        "validation": state.validation,
        "training": state.training,
        "selected_iteration": state.best["iteration"],
        "best_validation_accuracy": state.best["accuracy"],
        "iterations": state.iteration,
        "episodes": state.iteration * experiment.meta_batch,
        "seconds_to_train": state.seconds,
        "adaptation_ms": adaptation_ms,
        "peak_memory_mb": state.peak_memory_mb,
        "parameters": {
            "meta": sum(p.numel() for p in trainer.parameters),
            "backbone": backbone_parameters,
            "generated": _generated(method, tested),
        },
        "manifest": shared,
        "normalization": experiment.normalization,
        "processes": world_size(),
    }
    if test:
        result["losses"], result["accuracies"] = trainer.evaluate(tasksets.test, experiment.test_episodes)
    return result


class _Trainer:
    def __init__(
        self,
        run: Run,
        method: Episodic,
        tasksets: BenchmarkTasksets,
        checkpoint: Path,
        at_once: int,
        autocast: torch.autocast,
    ) -> None:
        self.run = run
        self.method = method
        self.tasksets = tasksets
        self.checkpoint = checkpoint
        self.at_once = at_once
        self.autocast = autocast
        self.state = _State()
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.lr = float(METHODS[run.method].complete(run.options)["lr"])
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.lr, fused=True)
        self.window: list[tuple[float, float]] = []  # losses and accuracies since the last look at validation

    def evaluate(self, taskset: TensorTaskset, episodes: int) -> tuple[list[float], list[float]]:
        """Losses and accuracies of validation or test episodes, which the processes share."""
        e, mine = self.run.experiment, share(range(episodes))

        def draw(positions: range) -> Episodes:
            indices = mine[positions.start : positions.stop]
            return taskset.batch(indices, ways=e.ways, shots=e.shots, queries=e.queries)

        values = torch.zeros(2, episodes, dtype=torch.float64)
        batch_size = min(self.at_once, len(share(range(e.meta_batch))))
        with self.autocast:
            measured = evaluate(self.method, draw, len(mine), batch_size=batch_size)
        values[:, mine.start : mine.stop] = torch.tensor(measured, dtype=torch.float64)
        sum_over_processes([values])
        losses, accuracies = values.tolist()
        return losses, accuracies

    def train(self, resume: bool, progress: Progress | None) -> None:
        e = self.run.experiment
        if resume:
            self._load()
        reset_peak_memory(next(self.method.parameters()).device)
        while not self._finished():
            loss, accuracy = self._iterate()
            if progress is not None:
                progress(self.state.iteration, e.iterations, self.state.seconds, loss, accuracy)
            self.window.append((loss, accuracy))
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
        episodes = self.tasksets.train.batch(share(indices), seed=self.run.seed, **_training_episodes(e))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * (1 + math.cos(math.pi * self._share_done())) / 2
        self.optimizer.zero_grad()
        seed_each(self.run.seed, state.iteration)
        total_loss = total_accuracy = torch.zeros((), device=episodes.support.device)
        for part in episodes.split(self.at_once):
            with self.autocast:
                losses, accuracies = losses_and_accuracies(self.method, part)
            losses.sum().backward()
            total_loss = total_loss + losses.detach().sum()
            total_accuracy = total_accuracy + accuracies.sum()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        sum_over_processes([*gradients, total_loss, total_accuracy])
        loss = float(total_loss) / e.meta_batch
        if not math.isfinite(loss):
            raise InputError(self._not_finite(loss, episodes))
        for gradient in gradients:
            gradient /= e.meta_batch
        self.optimizer.step()
        state.iteration += 1
        state.seconds += from_first(lambda: time.perf_counter() - begin)
        return loss, float(total_accuracy) / e.meta_batch

    def _not_finite(self, loss: float, episodes: Episodes) -> str:
        bad = torch.zeros(self.run.experiment.meta_batch)
        for i, one in zip(share(range(len(bad))), episodes, strict=True):
            bad[i] = not (one.support.isfinite().all() and one.query.isfinite().all())
        sum_over_processes([bad])
        first = int(bad.argmax())
        where = f"the images of episode {first} of the batch are not finite" if bad.any() else "the images are finite"
        kept = (
            f"the checkpoint of iteration {self._last_saved()} stays"
            if self.checkpoint.exists()
            else "no checkpoint yet"
        )
        return (
            f"{self.run.name}: expected a finite loss, got {loss} at iteration {self.state.iteration} ({where}); "
            f"{kept}; try a smaller learning rate"
        )

    def _last_saved(self) -> int:
        return int(self.state.validation[-1]["iteration"]) if self.state.validation else 0

    def _validate(self) -> None:
        e, state = self.run.experiment, self.state
        losses, accuracies = self.evaluate(self.tasksets.validation, e.validation_episodes)
        seen = torch.tensor(accuracies, dtype=torch.float64)
        mean = float(seen.mean())
        half_width = 1.96 * float(seen.std()) / len(accuracies) ** 0.5 if len(accuracies) > 1 else math.nan
        now = {"iteration": state.iteration, "seconds": state.seconds}
        loss, accuracy = (sum(values) / len(values) for values in zip(*self.window, strict=True))
        self.window = []
        state.training.append({**now, "loss": loss, "accuracy": accuracy})
        mean_loss = sum(losses) / len(losses)
        state.validation.append({**now, "accuracy": mean, "half_width": half_width, "loss": mean_loss})
        if state.best is None or mean > state.best["accuracy"]:
            weights = {name: value.detach().clone() for name, value in self.method.state_dict().items()}
            state.best = {"iteration": state.iteration, "accuracy": mean, "weights": weights}
        device = next(self.method.parameters()).device
        state.peak_memory_mb = max(state.peak_memory_mb, peak_memory_mb(device))

    def _save(self) -> None:
        save_checkpoint(
            self.checkpoint,
            {
                "run": self.run.to_dict(),
                "state": vars(self.state),
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": torch.get_rng_state(),
            },
        )

    def _load(self) -> None:
        cpu = torch.device("cpu")  # as all processes can hold it
        saved = from_first(lambda: load_checkpoint(self.checkpoint, cpu) if self.checkpoint.exists() else None)
        if saved is None:
            return
        if saved.get("run") != self.run.to_dict():
            raise InputError(
                f"expected the checkpoint of this run in {self.checkpoint}, got one of another configuration; "
                "use another output folder, or remove the file"
            )
        self.state = _State(**saved["state"])
        self.method.load_state_dict(saved["method"])
        self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"expected a device that is there, got {name!r} ({str(error).splitlines()[0]}); try cpu"
        ) from error
    return device


def _tasksets(run: Run, data_root: str | Path, device: torch.device) -> tuple[BenchmarkTasksets, dict[str, Any]]:
    e = run.experiment
    tasksets = get_tasksets(
        e.tasksets,
        train_ways=e.train_ways or e.ways,
        train_samples=e.shots + (e.train_queries or e.queries),
        test_ways=e.ways,
        test_samples=e.shots + e.queries,
        root=str(data_root),
        device=device,
        split_seed=e.split_seed,
    )
    shared = manifest(
        tasksets,
        name=e.tasksets,
        ways=e.ways,
        shots=e.shots,
        queries=e.queries,
        split_seed=e.split_seed,
        episodes=e.test_episodes,
    )
    return tasksets, shared


def _training_episodes(e: Experiment) -> dict[str, int]:
    return {"ways": e.train_ways or e.ways, "shots": e.shots, "queries": e.train_queries or e.queries}


def _backbone(run: Run, tasksets: BenchmarkTasksets) -> nn.Module:
    e = run.experiment
    torch.manual_seed(run.seed)
    np.random.seed(run.seed)  # noqa: NPY002 - learn2learn draws some initial weights with scipy, from numpy's global state
    return BACKBONES[e.backbone](e.ways, e.hidden, tasksets.train.image_shape)


def _check_names(run: Run) -> None:
    for kind, name, known in (
        ("method", run.method, METHODS),
        ("backbone", run.experiment.backbone, BACKBONES),
    ):
        if name not in known:
            raise InputError(f"{kind} must be one of {', '.join(known)}, got {name!r}")


def _check_shared(run: Run) -> None:
    e, processes = run.experiment, world_size()
    if e.meta_batch < processes:
        raise InputError(f"meta_batch must be at least the number of processes, {processes}, got {e.meta_batch}")
    if e.normalization == "running" and processes > 1:
        raise InputError(
            "normalization 'running' averages over tasks in the order in which one process meets them, "
            f"got {processes} processes; use support or transductive, or one process"
        )


@torch.no_grad()
def _generated(method: Episodic, episode: Episodes) -> int:
    return method.generated(method.adapt(episode.support, episode.support_labels))
