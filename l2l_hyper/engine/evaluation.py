"""Testing a method on episodes addressed by index, and timing its adaptation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..baselines import Episodic
from ..tasks import Episodes

__all__ = ["adaptation_milliseconds", "evaluate", "losses_and_accuracies"]


def losses_and_accuracies(method: Episodic, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """Mean query cross-entropy and accuracy of each episode, both of shape ``(T,)``."""
    adapted = method.adapt(episodes.support, episodes.support_labels)
    outputs = method.predict(adapted, episodes.query)
    losses = F.cross_entropy(outputs.transpose(1, 2), episodes.query_labels, reduction="none").mean(1)
    accuracies = (outputs.detach().argmax(-1) == episodes.query_labels).float().mean(1)
    return losses, accuracies


@torch.no_grad()
def evaluate(
    method: Episodic, batch: Callable[[range], Episodes], episodes: int, *, batch_size: int
) -> tuple[list[float], list[float]]:
    """Loss and accuracy of episodes 0 … ``episodes`` − 1, in evaluation mode.

    Args:
        method: what to test.
        batch: a range of episode indices to episodes.
        episodes: how many.
        batch_size: how many at once.
    """
    was_training = method.training
    method.eval()
    losses: list[float] = []
    accuracies: list[float] = []
    for first in range(0, episodes, batch_size):
        loss, accuracy = losses_and_accuracies(method, batch(range(first, min(first + batch_size, episodes))))
        losses += loss.tolist()
        accuracies += accuracy.tolist()
    method.train(was_training)
    return losses, accuracies


@torch.no_grad()
def adaptation_milliseconds(method: Episodic, episode: Episodes, *, repeats: int = 30) -> float:
    """Median milliseconds to adapt to one task, queries not counted."""
    was_training = method.training
    method.eval()
    times = []
    for repeat in range(repeats + 5):
        _synchronize(episode.support)
        begin = time.perf_counter()
        method.adapt(episode.support, episode.support_labels)
        _synchronize(episode.support)
        if repeat >= 5:  # the first calls warm caches up
            times.append(time.perf_counter() - begin)
    method.train(was_training)
    return 1000 * statistics.median(times)


def _synchronize(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
