"""Whether something fits into memory, which is found out before the memory is taken."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from .errors import InputError

__all__ = ["free_bytes", "graphs_fit", "require_memory", "weights_fit"]

_CPU = torch.device("cpu")
_FACTORIES = (torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros)
_SMALL = 2**28  # what is free is not looked up for less, which would take longer than the thing itself
_SHARES = 4  # a weight, its gradient and the two averages of Adam


def free_bytes(device: torch.device = _CPU) -> int:
    """Bytes that are free on a device; on a CPU those of the machine, within the limits of a container or a job."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = _lines("/proc/meminfo")
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    if not found:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        folder, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        limits = _lines(f"/sys/fs/cgroup/{folder}{path}/{name}")
        found += [int(limit) for limit in limits if limit.isdecimal()]
    return min(found)


def require_memory(needed: int, what: str, remedy: str, device: torch.device = _CPU) -> None:
    """Raise :class:`InputError` where something needs more memory than is free.

    Args:
        needed: bytes.
        what: what needs them, for the message.
        remedy: what to try.
        device: where.
    """
    free = free_bytes(device) if needed > _SMALL else needed
    if needed > free:
        raise _too_large(needed, free, what, remedy)


@contextmanager
def weights_fit(what: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Within the block tensors are only made while there is room to train them; after that :class:`InputError`.

    Args:
        what: what is made, for the message.
        options: what it is made with, of which the message names the largest numbers.
    """
    numbers = {name: value for name, value in options.items() if isinstance(value, int) and value > 1}
    remedy = f"lower {' or '.join(sorted(numbers, key=lambda name: -numbers[name])[:2]) or 'its size'}"
    try:
        with _Counted(what, remedy):
            yield
    except (MemoryError, RuntimeError, OverflowError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and not any(words in text for words in ("memory", "verflow")):
            raise
        raise InputError(f"expected {what} to fit into memory, got: {text.splitlines()[0]}; {remedy}") from error


@contextmanager
def graphs_fit(what: str, remedy: str) -> Iterator[None]:
    """Within the block graphs only grow while there is room for them; after that :class:`InputError`.

    Args:
        what: what makes the graphs, for the message.
        remedy: what to try.
    """
    free, kept, met = free_bytes(), 0, set[int]()
    boxes: list[list[Tensor]] = []

    def count(tensor: Tensor) -> list[Tensor]:
        nonlocal kept
        storage = tensor.untyped_storage()
        if tensor.device == _CPU and storage.data_ptr() not in met:
            met.add(storage.data_ptr())
            kept += storage.nbytes()
            if kept > free:
                raise _too_large(kept, free, what, remedy)
        boxes.append([tensor])
        return boxes[-1]

    try:
        with saved_tensors_hooks(count, lambda box: box[0]):
            yield
    finally:
        for box in boxes:  # an operation that keeps its own output would keep itself, and the whole graph, for ever
            box.clear()


class _Counted(TorchFunctionMode):
    """Adds up the sizes of new tensors before they are made."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__()
        self.what, self.remedy, self.made, self.free = what, remedy, 0, free_bytes()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            size = kwargs.get("size") or (args if isinstance(args[0], int) else args[0])
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            self.made += _SHARES * math.prod(size) * dtype.itemsize
            if self.made > self.free:
                raise _too_large(self.made, self.free, f"{self.what} and what training keeps of it", self.remedy)
        return func(*args, **kwargs)


def _too_large(needed: int, free: int, what: str, remedy: str) -> InputError:
    sizes = [f"{size / 2**30:,.1f} GiB" for size in (free, needed)]
    return InputError(f"expected {what} to fit into the {sizes[0]} of memory that are free, got {sizes[1]}; {remedy}")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
