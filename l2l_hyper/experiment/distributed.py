"""Several processes share the tasks of a run; in one process, every function here leaves things as they are."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, distributed

from ..data.counter_random import stream
from ..errors import InputError

__all__ = [
    "ProcessLost",
    "first_then_others",
    "from_first",
    "is_first",
    "process_group",
    "seed_each",
    "share",
    "sum_over_processes",
    "world_size",
]

T = TypeVar("T")

# How long to wait for a process that lives: the first may have to read a large data set while the others wait.  One
# that dies is noticed at once, by the connection that closes or by torchrun.
_PATIENCE = timedelta(hours=2)


class ProcessLost(BaseException):
    """Another of the processes has ended.

    No ``Exception``, as ``KeyboardInterrupt`` is none: what handles errors must not go on without the others.
    """


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Within the block this process is one of those that torchrun started, if it did: gloo on CPUs, nccl on GPUs.

    A block within the block changes nothing.  SIGTERM, with which torchrun ends the processes that are left when one
    has died, raises :class:`ProcessLost`.

    Args:
        device: what each process computes on; "cuda" gives each the GPU of its local rank.

    Raises:
        InputError: for a GPU with a number, fewer GPUs than processes, and an environment that is half of torchrun's.
    """
    if _started() == 1 or distributed.is_initialized():
        yield
        return
    after = signal.signal(signal.SIGTERM, _terminated)
    try:
        _join(torch.device(device))
        yield
    except ProcessLost:
        after = signal.SIG_IGN  # the process is ending: torchrun's signal must not cut short what it has to say
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        signal.signal(signal.SIGTERM, after)


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return rank() == 0


def share(indices: range) -> range:
    """The indices that are this process's: consecutive, and as many as any other's or one more or less."""
    begin, end = (len(indices) * r // world_size() for r in (rank(), rank() + 1))
    return indices[begin:end]


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in place; all of them travel as one."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _together():
        distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` returns in the first process, in every process; an :class:`InputError` of it is raised in all."""
    if world_size() == 1:
        return make()
    box: list[T | InputError | None] = [None]
    if is_first():
        try:
            box = [make()]
        except InputError as error:
            box = [error]
    with _together():
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    if isinstance(box[0], InputError):
        raise box[0]
    return box[0]  # type: ignore[return-value]


@contextmanager
def first_then_others() -> Iterator[None]:
    """The block runs in the first process alone and then in the others, which find the files that it has made."""
    if not is_first():
        from_first(lambda: None)
    try:
        yield
    finally:
        if is_first():
            from_first(lambda: None)


def seed_each(*key: int) -> None:
    """Seed torch by the key and the rank, so that every process draws numbers of its own, and the same ones again.

    One process keeps its random state, which its checkpoints hold.
    """
    if world_size() > 1:
        torch.manual_seed(int(stream("process", rank(), *key)[0]))


def _started() -> int:
    """The number of processes that torchrun started, by the environment that it gives each of them."""
    remedy = "start the processes with torchrun, or unset WORLD_SIZE"
    values = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")}
    if "WORLD_SIZE" not in os.environ or values["WORLD_SIZE"] == "1":
        return 1
    for name, value in values.items():
        if not (value.isascii() and value.isdecimal()):
            raise InputError(
                f"expected {name} in the environment as a number, as torchrun gives it, got {value!r}: {remedy}"
            )
    rank, size = int(values["RANK"]), int(values["WORLD_SIZE"])
    if rank >= size or not os.environ.get("MASTER_ADDR"):
        raise InputError(f"expected RANK below WORLD_SIZE and a MASTER_ADDR, got {rank} of {size} processes: {remedy}")
    return size


def _join(device: torch.device) -> None:
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if device.index is not None:
            raise InputError(f"with several processes each takes a GPU of its own, got {device}; give cuda")
        if local >= torch.cuda.device_count():
            raise InputError(
                f"expected a GPU for each process, got {torch.cuda.device_count()} for "
                f"{os.environ['LOCAL_WORLD_SIZE']}; start fewer processes, or use cpu"
            )
        torch.cuda.set_device(local)
    with _together():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)


@contextmanager
def _together() -> Iterator[None]:
    """What the processes do together fails when one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        raise _lost("the connection to another one broke") from error


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _lost("it was told to stop (SIGTERM), as all are when one of them dies")


def _lost(reason: str) -> ProcessLost:
    return ProcessLost(f"process {os.environ.get('RANK', rank())} cannot go on: {reason}")
