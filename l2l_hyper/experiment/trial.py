"""What one episode tells of a method before it is trained: whether it keeps the contract, and what it generates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..data.episode import Episodes
from ..errors import InputError
from ..memory import graphs_fit
from ..methods.contract import Method, OneByOne

__all__ = ["count_generated", "multiply_adds_per_query", "require_contract"]


def require_contract(method: Method, name: str, episode: Episodes) -> None:
    """Adapt to one episode, predict its queries and differentiate the loss; the method stays as it was.

    Args:
        method: the method.
        name: its name, for messages.
        episode: a batch of one episode.

    Raises:
        InputError: for outputs of a wrong shape, and for a loss that is not one finite number per task or has no
            gradient with respect to any parameter.
    """
    before = {key: value.detach().clone() for key, value in method.state_dict().items()}
    device = episode.support.device
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.enable_grad(),
        graphs_fit(f"the graph of one task of {name}", "lower its steps or layers, or the samples of an episode"),
    ):
        adapted = method.adapt(episode.support_set)
        outputs = method.predict(adapted, episode.query)
        expected = f"outputs of shape {_shape_of_outputs(episode)} from predict(), with a leading dimension of tasks"
        if not isinstance(outputs, Tensor):
            raise _broken(name, expected, type(outputs).__name__)
        labels = episode.query_labels
        fits = outputs.shape[:2] == labels.shape[:2] and (
            outputs.shape == labels.shape if episode.ways is None else outputs.shape[2:] == (episode.ways,)
        )
        if not fits:
            raise _broken(name, expected, str(tuple(outputs.shape)))
        losses = method.loss(adapted, outputs, episode)
        if not isinstance(losses, Tensor) or losses.shape != (1,):
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise _broken(name, "a loss of shape (1,), one number per task", str(shape))
        if not losses.isfinite().all():
            raise _broken(name, "a finite loss on the first training episode", str(losses.item()))
        parameters = [p for p in method.parameters() if p.requires_grad]
        gradients: tuple[Tensor | None, ...] = ()
        if losses.requires_grad and parameters:
            gradients = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            raise _broken(name, "a loss with a gradient to its parameters", "one that depends on none of them")
    method.load_state_dict(before)


@torch.no_grad()
def count_generated(method: Method, episode: Episodes) -> int:
    """Numbers that adaptation gives a task of its own: its weights, or else every floating-point tensor it returns."""
    was_training = method.training
    method.eval()  # moves no running average
    adapted = method.adapt(episode.support_set)
    method.train(was_training)
    return _numbers([task for task, _ in adapted] if isinstance(method, OneByOne) else adapted) // len(episode)


@torch.no_grad()
def multiply_adds_per_query(method: Method, episode: Episodes) -> int:
    """Multiply-adds of matrix products and convolutions that a query costs once its task is adapted to."""
    was_training = method.training
    method.eval()
    adapted = method.adapt(episode.support_set)
    with FlopCounterMode(display=False) as counter:
        method.predict(adapted, episode.query)
    method.train(was_training)
    return counter.get_total_flops() // (2 * episode.query.shape[:2].numel())


def _numbers(value: Any) -> int:
    value = getattr(value, "weights", value)
    if isinstance(value, Tensor):
        return value.numel() if value.is_floating_point() else 0
    if isinstance(value, Mapping):
        return sum(map(_numbers, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_numbers, value))
    if isinstance(value, torch.nn.Module):
        return sum(map(_numbers, value.parameters()))
    if dataclasses.is_dataclass(value):
        return sum(_numbers(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 0


def _shape_of_outputs(episode: Episodes) -> tuple[int, ...]:
    shape = episode.query_labels.shape
    return tuple(shape) if episode.ways is None else (*shape, episode.ways)


def _broken(name: str, expected: str, arrived: str) -> InputError:
    return InputError(f"{name}: expected {expected}, got {arrived}; see docs/extend.md")
