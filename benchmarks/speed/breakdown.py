"""Where the time of a meta-training iteration goes, and its convolutions against the same ones by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import Algorithm, Setting
from scripts import our_tasksets
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from l2l_hyper.methods import METHODS

__all__ = ["breakdown", "engine_method"]

FORWARD, BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default
KINDS = {
    "convolutions": ("convolution",),
    "matrix products": ("mm", "bmm", "addmm", "baddbmm", "linear", "scaled_dot_product", "_scaled_dot_product"),
    "copies": ("copy", "clone", "cat", "stack", "_to_copy", "constant_pad_nd", "index", "as_strided"),
    "sums": ("sum", "mean", "linalg_vecdot", "_softmax", "_log_softmax", "native_layer_norm"),
}
Call = tuple[Any, tuple[Any, ...], float]


class _Clock(TorchDispatchMode):
    """Remembers every operation within the block, and how long it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begin = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - begin
        self.calls.append((func, args if func in (FORWARD, BACKWARD) else (), seconds))
        return result


def breakdown(setting: Setting, algorithm: Algorithm, root: Path, meta_batch: int) -> dict[str, Any]:
    """Seconds of an iteration's losses and gradients in the engine, by kind of operation.

    Returns:
        ``iteration``, the whole; ``kinds``, the seconds within operations, of which the rest of the whole is not part;
        ``gflop``, ``convolutions`` and ``alone``: of the convolutions, their seconds there and by themselves;
        ``adapting``: seconds, kinds, number of operations and ``alone``, of adapting to one task.
    """
    train = our_tasksets(setting, 2 * setting.shots, root).train
    method = engine_method(setting, algorithm)
    episodes = train.batch(range(meta_batch), shots=setting.shots, queries=setting.shots)

    def iteration() -> float:
        begin = time.perf_counter()
        adapted = method.adapt(episodes.support_set)
        method.loss(adapted, method.predict(adapted, episodes.query), episodes).sum().backward()
        return time.perf_counter() - begin

    def adapting() -> float:
        begin = time.perf_counter()
        with torch.no_grad():
            method.adapt(episodes.task(0).support_set)
        return time.perf_counter() - begin

    whole, calls = _watch(iteration, 5)
    convolutions = [call for call in calls if call[0] in (FORWARD, BACKWARD)]
    one, calls_of_one = _watch(adapting, 50)
    return {
        "seconds": [],
        "iteration": whole,
        "kinds": _by_kind(calls),
        "gflop": sum(map(_flop, convolutions)) / 1e9,
        "convolutions": sum(seconds for *_, seconds in convolutions),
        "alone": sum(map(_alone, convolutions)),
        "adapting": {
            "seconds": one,
            "kinds": _by_kind(calls_of_one),
            "operations": len(calls_of_one),
            "alone": sum(min(_alone(call) for _ in range(20)) for call in calls_of_one if call[0] is FORWARD),
        },
    }


def engine_method(setting: Setting, algorithm: Algorithm) -> Any:
    """The algorithm as experiments train it."""
    method = METHODS[algorithm.method].build(setting.model(), algorithm.options, "transductive")
    return method.to(memory_format=torch.channels_last)


def _watch(run: Callable[[], float], times: int) -> tuple[float, list[Call]]:
    """The least seconds of some runs, and the operations of the fastest of a few that were watched."""
    run()
    least = min(run() for _ in range(times))
    watched = []
    for _ in range(3):
        with _Clock() as clock:
            run()
        watched.append(clock.calls)
    return least, min(watched, key=lambda calls: sum(seconds for *_, seconds in calls))


def _by_kind(calls: list[Call]) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for func, _, seconds in calls:
        kind = _kind(func)
        kinds[kind] = kinds.get(kind, 0.0) + seconds
    return kinds


def _kind(func: Any) -> str:
    name = func.__name__.split(".")[0].rstrip("_")
    return next((kind for kind, names in KINDS.items() if name.startswith(names)), "element by element")


def _alone(call: Call) -> float:
    func, args, _ = call
    args = tuple(_like(a) if isinstance(a, Tensor) else a for a in args)
    func(*args)
    begin = time.perf_counter()
    func(*args)
    return time.perf_counter() - begin


def _like(x: Tensor) -> Tensor:
    other = torch.randn(x.shape)
    return other.to(memory_format=torch.channels_last) if x.dim() == 4 else other


def _flop(call: Call) -> float:
    func, args, _ = call
    if func is FORWARD:
        x, w, stride, padding = args[0], args[1], args[3], args[4]
        height, width = ((x.shape[2 + i] + 2 * padding[i] - w.shape[2 + i]) // stride[i] + 1 for i in (0, 1))
        return 2.0 * len(x) * height * width * w.numel()
    dy, w, wanted = args[0], args[2], args[-1]
    return 2.0 * len(dy) * dy.shape[2] * dy.shape[3] * w.numel() * (wanted[0] + wanted[1])
