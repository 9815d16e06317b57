"""Testing a method on episodes addressed by index, and timing its adaptation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from ..data import Episodes, Metric, Taskset
from ..methods.contract import Method

__all__ = ["adaptation_milliseconds", "evaluate_on"]


@torch.no_grad()
def evaluate_on(
    method: Method,
    taskset: Taskset,
    indices: range,
    metric: Metric,
    *,
    form: Mapping[str, int],
    device: torch.device,
    batch_size: int,
    control: str | None = None,
) -> tuple[list[float], list[float]]:
    """Loss (without the method's penalty) and score of each episode, in evaluation mode.

    Args:
        method: what to test.
        taskset: where the episodes come from.
        indices: which of its episodes.
        metric: what scores them.
        form: their ways, shots and queries.
        device: where the method is.
        batch_size: how many at once.
        control: one of the method's controls, under which it is to be tested.
    """
    was_training = method.training
    method.eval()
    losses: list[float] = []
    scores: list[float] = []
    for first in range(0, len(indices), batch_size):
        part = taskset.batch(indices[first : first + batch_size], **form).to(device)
        adapted = method.adapt(part.support_set)
        if control is not None:
            adapted = method.controlled(adapted, control)
        outputs = method.predict(adapted, part.query)
        losses += part.loss(outputs, part.query_labels).tolist()
        scores += metric.of(outputs, part.query_labels).tolist()
    method.train(was_training)
    return losses, scores


@torch.no_grad()
def adaptation_milliseconds(method: Method, episode: Episodes, *, repeats: int = 30) -> float:
    """Median milliseconds to adapt to one task, queries not counted."""
    was_training = method.training
    method.eval()
    times = []
    for repeat in range(repeats + 5):
        _synchronize(episode.support)
        begin = time.perf_counter()
        method.adapt(episode.support_set)
        _synchronize(episode.support)
        if repeat >= 5:  # the first calls warm caches up
            times.append(time.perf_counter() - begin)
    method.train(was_training)
    return 1000 * statistics.median(times)


def _synchronize(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
