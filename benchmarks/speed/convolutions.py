"""How fast the convolutions of a meta-training iteration are, against the same convolutions by themselves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from cases import Setting
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from l2l_hyper.engine import BACKBONES, METHODS
from l2l_hyper.engine.evaluation import losses_and_accuracies
from l2l_hyper.tasks import get_tasksets

__all__ = ["in_training_and_alone"]

FORWARD, BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default


class Convolutions(TorchDispatchMode):
    """Remembers the convolutions that run within the block, and how long each takes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begin = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        if func in (FORWARD, BACKWARD):
            self.calls.append((func, args, time.perf_counter() - begin))
        return result


def in_training_and_alone(setting: Setting, root: Path, meta_batch: int) -> dict[str, float]:
    """GFLOP of the convolutions of an iteration of HyperAdapter, and their seconds there and by themselves."""
    samples = 2 * setting.shots
    train = get_tasksets(setting.tasksets, setting.ways, samples, setting.ways, samples, root=root).train
    model = BACKBONES[setting.backbone](setting.ways, setting.hidden, train.image_shape)
    method = METHODS["hyper-adapter"].build(model, {}, "support").to(memory_format=torch.channels_last)
    episodes = train.batch(range(meta_batch), shots=setting.shots, queries=setting.shots)

    def iteration() -> list[tuple[Any, tuple[Any, ...], float]]:
        with Convolutions() as seen:
            losses_and_accuracies(method, episodes)[0].sum().backward()
        return seen.calls

    iteration()
    runs = [iteration() for _ in range(5)]
    alone = []
    for func, args, _ in runs[0]:
        args = tuple(_like(a) if isinstance(a, Tensor) else a for a in args)
        func(*args)
        begin = time.perf_counter()
        func(*args)
        alone.append(time.perf_counter() - begin)
    return {
        "gflop": sum(map(_flop, runs[0])) / 1e9,
        "seconds_there": min(sum(seconds for *_, seconds in calls) for calls in runs),
        "seconds_alone": sum(alone),
        "seconds": [],
    }


def _like(x: Tensor) -> Tensor:
    other = torch.randn(x.shape)
    return other.to(memory_format=torch.channels_last) if x.dim() == 4 else other


def _flop(call: tuple[Any, tuple[Any, ...], float]) -> float:
    func, args, _ = call
    if func is FORWARD:
        x, w, stride, padding = args[0], args[1], args[3], args[4]
        height, width = ((x.shape[2 + i] + 2 * padding[i] - w.shape[2 + i]) // stride[i] + 1 for i in (0, 1))
        return 2.0 * len(x) * height * width * w.numel()
    dy, w, wanted = args[0], args[2], args[-1]
    return 2.0 * len(dy) * dy.shape[2] * dy.shape[3] * w.numel() * (wanted[0] + wanted[1])
