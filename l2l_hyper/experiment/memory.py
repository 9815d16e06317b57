"""Memory: the peak of a stretch of work, and how many tasks fit into a limit."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..data.episode import Episodes
from ..methods.contract import Method

__all__ = ["peak_memory_mb", "reset_peak_memory", "tasks_at_once"]

# On a CPU, layers of each task's own gain nothing from being done together once support images have this many pixels.
_LARGE = 1 << 17

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new peak, where the system can; elsewhere the peak is that of the process so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_memory_mb(device: torch.device) -> float:
    """Peak since the reset in MiB: allocated memory on a GPU, resident memory of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def tasks_at_once(method: Method, episode: Episodes, limit_mb: float) -> int:
    """How many tasks such as ``episode`` are best trained on together, for their graphs to stay within the limit.

    The graph of one task is built, and what it keeps for the backward pass counted: the same number on every machine.
    """
    support = episode.support[0]
    is_images = support.ndim == 4
    large = is_images and support.device.type == "cpu" and len(support) * support.shape[-2:].numel() > _LARGE
    if method.one_by_one or (method.adapts_features and large):
        return 1
    kept: dict[int, int] = {}
    boxes: list[list[Tensor]] = []

    def count(tensor: Tensor) -> list[Tensor]:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        boxes.append([tensor])
        return boxes[-1]

    was_training = method.training
    method.eval()  # draws no random number, moves no running average
    with torch.enable_grad(), saved_tensors_hooks(count, lambda box: box[0]):
        adapted = method.adapt(episode.support_set)
        method.loss(adapted, method.predict(adapted, episode.query), episode)
        del adapted
    for box in boxes:  # an operation that keeps its own output would keep itself, and the whole graph, for ever
        box.clear()
    method.train(was_training)
    own = {p.untyped_storage().data_ptr() for p in method.parameters()}
    each = sum(size for at, size in kept.items() if at not in own)
    return max(1, int(limit_mb * 2**20 / max(each, 1)))
