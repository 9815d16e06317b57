"""The bridge from weights to modules: call a module under other weights, install them in it, copy its tree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from ..errors import InputError

__all__ = ["call", "clone_tree", "install", "replaced", "share_copy", "slots", "tensors"]

M = TypeVar("M", bound=nn.Module)


def share_copy(module: M) -> M:
    """Copy the tree of modules and leave every parameter and buffer the very same tensor."""
    return _share_copy(module, {})


def _share_copy(module: M, memo: dict[int, Any]) -> M:
    if id(module) not in memo:
        copied = memo[id(module)] = _shallow(module)
        copied.__dict__.update({name: own.copy() for name, own in copied.__dict__.items() if isinstance(own, dict)})
        for name, child in module._modules.items():
            copied._modules[name] = None if child is None else _share_copy(child, memo)
    return memo[id(module)]


def _shallow(module: M) -> M:
    copied = object.__new__(type(module))  # a GraphModule's own makes another class, without forward
    copied.__dict__.update(module.__dict__)
    return copied


def clone_tree(module: M, shared: Callable[[nn.Module, str], bool]) -> M:
    """Copy the tree of modules with new tensors in it, through which gradients flow to the old ones.

    Whatever is done to the copy, or to its tensors, stays there.

    Args:
        module: the module to copy.
        shared: whether a module's buffer of this name stays the very same tensor.
    """
    copied = share_copy(module)
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


def replaced(module: M, places: Mapping[str, list[str]], weights: Mapping[str, Tensor]) -> M:
    """The module with some of its parameters or buffers replaced, as a copy that shares everything else with it.

    Nothing is written on the module itself, which other threads may be running.  Copied are the modules that hold what
    is replaced and those that hold them in turn; an attribute that their ``forward`` sets stays in the copy.

    Args:
        module: the module.
        places: what :func:`slots` says of it.  A name that it lacks is a place that holds no tensor yet.
        weights: tensors by name.

    Raises:
        InputError: for a name that the module lacks.
    """
    if not weights:
        return module
    held: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        for place in places.get(name, (name,)):
            slot = place.rpartition(".")[2]
            held.setdefault(place.removesuffix(slot), {})[slot] = value
    copied = _replaced(module, "", held, {})
    unknown = [prefix + slot for prefix, left in held.items() for slot in left]
    if unknown:
        raise InputError(f"expected names of parameters or buffers of {type(module).__name__}, got {unknown[0]!r}")
    return copied


def _replaced(module: M, prefix: str, held: Mapping[str, dict[str, Tensor]], memo: dict[int, Any]) -> M:
    """What is used of ``held``, tensors by name and by the path of the module that holds them, is taken out of it."""
    if id(module) not in memo:
        copies = {
            name: copied
            for name, child in module._modules.items()
            if child is not None and (copied := _replaced(child, f"{prefix}{name}.", held, memo)) is not child
        }
        memo[id(module)] = module
        own = held.get(prefix, {})
        if own or copies:
            copied = memo[id(module)] = _shallow(module)
            parameters = {name: own.pop(name, value) for name, value in module._parameters.items()}
            buffers = {name: own.pop(name, value) for name, value in module._buffers.items()}
            copied.__dict__.update(_modules={**module._modules, **copies}, _parameters=parameters, _buffers=buffers)
    return memo[id(module)]


def call(
    module: nn.Module, places: Mapping[str, list[str]], weights: Mapping[str, Tensor], *args: Any, **kwargs: Any
) -> Any:
    """Call ``module`` with some of its parameters or buffers replaced, see :func:`replaced`.

    Args:
        module: the module.
        places: what :func:`slots` says of it.
        weights: tensors by name.
        *args: of the module.
        **kwargs: of the module.
    """
    return replaced(module, places, weights)(*args, **kwargs)
