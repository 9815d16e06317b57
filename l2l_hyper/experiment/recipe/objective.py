"""What one training iteration minimises, and its gradient: episodes, and single samples among all training classes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ...data import Episodes, Metric, Taskset
from ...functional import normalized_by
from ...methods import Method
from ..config import Experiment, Run
from ..distributed import share
from .augmentation import augmented_episodes, augmented_images
from .classification import class_pass

__all__ = ["Objective", "training_episodes"]


def training_episodes(e: Experiment, iteration: int = 0) -> dict[str, int]:
    """The form of the training episodes of an iteration, as tasksets take it."""
    shots = e.train_shots or (e.shots,)
    return {
        "ways": e.train_ways or e.ways,
        "shots": shots[iteration % len(shots)],
        "queries": e.train_queries or e.queries,
    }


class Objective:
    r"""The loss of an iteration, :math:`\frac1T\sum_t L_t + w\,L_{\text{classes}}`.

    :math:`L_t` is the method's own loss of episode t, and :math:`L_{\text{classes}}` the cross-entropy of the images of
    the class batch, where there is one, with its weight w.  With normalization "running" the episodes are then
    normalized by the statistics of the class batch, through which the gradient flows as well.

    Args:
        run: the experiment and the seed of the episodes.
        method: with the submodule ``whole_classifier`` if there is a class batch.
        taskset: of the training episodes.
        metric: what scores the queries.
        classes: the taskset whose method ``classified`` draws the class batch, if there is one.
        at_once: how many episodes go together.
        device: where the method is.
        autocast: the context of forward passes.
    """

    def __init__(
        self,
        run: Run,
        method: Method,
        taskset: Taskset,
        metric: Metric,
        *,
        classes: Any,
        at_once: int,
        device: torch.device,
        autocast: torch.autocast,
    ) -> None:
        self.run, self.method, self.taskset, self.metric, self.classes = run, method, taskset, metric, classes
        self.at_once, self.device, self.autocast = at_once, device, autocast

    def episodes(self, iteration: int) -> Episodes:
        """This process's episodes of an iteration."""
        e = self.run.experiment
        indices = share(range(iteration * e.meta_batch, (iteration + 1) * e.meta_batch))
        # Seed 0 is that of the validation and test splits; they hold other classes all the same.
        drawn = self.taskset.batch(indices, seed=self.run.seed, **training_episodes(e, iteration)).to(self.device)
        return drawn if e.augmentation == "none" else augmented_episodes(drawn, indices, self.run.seed)

    def backward(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Add T times the gradient of an iteration's loss to the parameters; T times the loss, the sum of scores."""
        class_loss, shared = self._class_loss(iteration) if self.run.experiment.class_batch else (None, {})
        # Leaves of their own, so that episodes may go in parts: each part adds its gradient.
        leaves = {name: (_leaf(mean), _leaf(var)) for name, (mean, var) in shared.items()}
        loss = score = torch.zeros((), device=self.device)
        # As the running averages of such batches normalize them afterwards, not by few samples of their own.
        network: Any = getattr(self.method, "network", None)
        with normalized_by(network.module, leaves) if leaves else nullcontext():
            for part in self.episodes(iteration).split(self.at_once):
                with self.autocast:
                    adapted = self.method.adapt(part.support_set)
                    outputs = self.method.predict(adapted, part.query)
                    losses = self.method.loss(adapted, outputs, part)
                    scores = self.metric.of(outputs.detach(), part.query_labels)
                losses.sum().backward()
                loss, score = loss + losses.detach().sum(), score + scores.sum()
        if class_loss is None:
            return loss, score
        pairs = zip(_flat(shared), _flat(leaves), strict=True)
        through = [(own, leaf.grad[None]) for own, leaf in pairs if leaf.grad is not None]
        torch.autograd.backward(
            [class_loss, *(own for own, _ in through)], [None, *(gradient for _, gradient in through)]
        )
        return loss + class_loss.detach(), score

    def _class_loss(self, iteration: int) -> tuple[Tensor, Mapping[str, tuple[Tensor, Tensor]]]:
        """T times the weighted loss of the class batch, and the statistics by which it normalizes the episodes."""
        e = self.run.experiment
        indices = range(iteration * e.class_batch, (iteration + 1) * e.class_batch)
        x, labels = self.classes.classified(indices, seed=self.run.seed)
        x, labels = x.to(self.device), labels.to(self.device)
        x = x if e.augmentation == "none" else augmented_images(x, indices, "class", self.run.seed)
        with self.autocast:
            loss, seen = class_pass(self.method, x, labels, e.label_smoothing)
        return e.class_weight * e.meta_batch * loss, seen.statistics if e.normalization == "running" else {}


def _leaf(statistic: Tensor) -> Tensor:
    """Mean or variance ``(1, C)`` as ``(C,)`` without its graph."""
    return statistic[0].detach().requires_grad_()


def _flat(statistics: Mapping[str, tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [value for pair in statistics.values() for value in pair]
