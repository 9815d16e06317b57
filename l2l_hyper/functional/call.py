"""The bridge from weights to modules: call a module under other weights, install them in it, copy its tree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["call", "clone_tree", "install", "share_copy", "slots", "tensors"]

M = TypeVar("M", bound=nn.Module)


def share_copy(module: M, *, copy_buffers: bool) -> M:
    """Copy the tree of modules and leave every parameter the very same tensor.

    Args:
        module: the module to copy.
        copy_buffers: whether buffers are cloned or shared.
    """
    return _share_copy(module, copy_buffers, {})


def _share_copy(module: M, copy_buffers: bool, memo: dict[int, Any]) -> M:
    if id(module) in memo:
        return memo[id(module)]
    copied = memo[id(module)] = object.__new__(type(module))  # a GraphModule's own makes another class, without forward
    copied.__dict__ = {k: v.copy() if isinstance(v, dict) else v for k, v in module.__dict__.items()}
    for name, buffer in module._buffers.items():
        copied._buffers[name] = buffer.clone() if copy_buffers and buffer is not None else buffer
    for name, child in module._modules.items():
        copied._modules[name] = None if child is None else _share_copy(child, copy_buffers, memo)
    return copied


def clone_tree(module: M, shared: Callable[[nn.Module, str], bool]) -> M:
    """Copy the tree of modules with new tensors in it, through which gradients flow to the old ones.

    Whatever is done to the copy, or to its tensors, stays there.

    Args:
        module: the module to copy.
        shared: whether a module's buffer of this name stays the very same tensor.
    """
    copied = share_copy(module, copy_buffers=False)
    new: dict[int, Tensor] = {}
    for child in copied.modules():
        for name, parameter in child._parameters.items():
            if parameter is not None:
                child._parameters[name] = new.setdefault(id(parameter), parameter.clone())  # type: ignore[assignment]
        for name, buffer in child._buffers.items():
            if buffer is not None and not shared(child, name):
                child._buffers[name] = new.setdefault(id(buffer), buffer.clone())
    return copied


def slots(module: nn.Module) -> dict[str, list[str]]:
    """Every place that holds each parameter or buffer: names by the name that ``named_parameters`` gives it.

    A tensor tied between two layers has two places; one in a layer that the tree holds twice has one.
    """
    places: dict[int, dict[tuple[int, str], str]] = {}
    for prefix, child in module.named_modules():
        for name, tensor in (*child._parameters.items(), *child._buffers.items()):
            if tensor is not None:
                full = f"{prefix}.{name}" if prefix else name
                places.setdefault(id(tensor), {})[(id(child), name)] = full
    return {names[0]: names for names in (list(place.values()) for place in places.values())}


def tensors(module: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The parameters or buffers of these names."""
    for name in names:
        owner, _, slot = name.rpartition(".")
        yield name, getattr(module.get_submodule(owner), slot)


def install(module: nn.Module, places: Mapping[str, list[str]], weights: Mapping[str, Tensor | None]) -> None:
    """Put tensors in the places of parameters or buffers, where the methods and attributes of the module find them.

    The tensors keep their graph, as after ``l2l.update_module``; tied places stay tied.

    Args:
        module: the module.
        places: what :func:`slots` says of it.
        weights: tensors by name.
    """
    for name, value in weights.items():
        for place in places.get(name, (name,)):
            owner, _, slot = place.rpartition(".")
            holder = module.get_submodule(owner)
            (holder._parameters if slot in holder._parameters else holder._buffers)[slot] = value  # type: ignore[assignment]


def call(
    module: nn.Module, places: Mapping[str, list[str]], weights: Mapping[str, Tensor], *args: Any, **kwargs: Any
) -> Tensor:
    """Call ``module`` with some of its parameters or buffers replaced: the one bridge from weights to modules.

    ``torch.func.functional_call`` does the work.  Its own handling of tied weights is left off: where the tree holds
    one layer twice, as ``l2l.vision.models.OmniglotCNN`` does, it replaces the tensor twice and leaves the
    replacement in the module.

    Args:
        module: the module.
        places: what :func:`slots` says of it.  A name that it lacks is a place that holds no tensor yet.
        weights: tensors by name.
        *args: of the module.
        **kwargs: of the module.
    """
    replaced = {place: value for name, value in weights.items() for place in places.get(name, (name,))}
    return functional_call(module, replaced, args, kwargs, tie_weights=False)
