"""Testing a method on episodes addressed by index, and timing its adaptation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import Episodes, Metric, Taskset
from ..methods.contract import Method

__all__ = ["Measured", "adaptation_milliseconds", "evaluate_on"]

_BINS = 15
_EXCHANGED = 4  # tasks at least between which a control exchanges what is generated


class Measured(NamedTuple):
    """What a method reaches on some episodes.

    Attributes:
        losses: of each episode, without the method's penalty.
        scores: of each episode.
        bins: for 15 equal intervals of confidence, which is the largest probability of a query, the number of queries
            in it, the sum of their confidences and the number of right answers, ``(15, 3)``; zeros in regression.
        controls: scores of each episode under each control, ``(controls, episodes)``.
    """

    losses: Tensor
    scores: Tensor
    bins: Tensor
    controls: Tensor

    @property
    def calibration_error(self) -> float | None:
        r"""Expected calibration error, :math:`\sum_b \frac{n_b}{n} \lvert a_b - p_b \rvert` of accuracy and confidence.

        See Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599.
        """
        queries, confidence, right = self.bins.unbind(1)
        return float((right - confidence).abs().sum() / queries.sum()) if queries.any() else None


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
    controls: Sequence[str] = (),
) -> Measured:
    """Loss and score of each episode and the calibration of all, in evaluation mode.

    Args:
        method: what to test.
        taskset: where the episodes come from.
        indices: which of its episodes.
        metric: what scores them.
        form: their ways, shots and queries.
        device: where the method is.
        batch_size: how many at once; with controls at least four, as these exchange what tasks have among those that
            are tested together.
        controls: those of the method's controls under which it is to be tested as well.
    """
    was_training = method.training
    method.eval()
    losses, scores = [torch.zeros(0, device=device)], [torch.zeros(1 + len(controls), 0, device=device)]
    bins = torch.zeros(_BINS, 3, dtype=torch.float64, device=device)
    size = max(batch_size, _EXCHANGED) if controls else batch_size
    starts = [i for i in range(0, len(indices), size) if not (controls and 0 < i == len(indices) - 1)]
    for first, end in pairwise([*starts, len(indices)]):  # no task is alone under controls
        part = taskset.batch(indices[first:end], **form).to(device)
        adapted = method.adapt(part.support_set)
        each = [adapted, *(method.controlled(adapted, control) for control in controls)]
        outputs, *under = method.predict_each(each, part.query)
        losses.append(part.loss(outputs, part.query_labels))
        scores.append(torch.stack([metric.of(answer, part.query_labels) for answer in (outputs, *under)]))
        if part.ways is not None:
            bins += _binned(outputs, part.query_labels)
    method.train(was_training)
    all_losses, (own, *others) = torch.cat(losses).double().cpu(), torch.cat(scores, 1).double().cpu()
    if len(indices) and not all_losses.isfinite().any():  # nothing was answered, and a share of that is no score
        own.fill_(torch.nan)
    return Measured(all_losses, own, bins.cpu(), torch.stack(others) if others else own.new_zeros(0, len(own)))


def _binned(outputs: Tensor, labels: Tensor) -> Tensor:
    """What logits ``(T, Q, C)`` add to the bins of :class:`Measured`."""
    confidence, predicted = outputs.double().softmax(-1).flatten(0, 1).max(-1)
    confidence = confidence.nan_to_num()
    values = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels.flatten()).double()], 1)
    bins = (confidence * _BINS).long().clamp_max(_BINS - 1)
    return values.new_zeros(_BINS, 3).index_add_(0, bins, values)


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
