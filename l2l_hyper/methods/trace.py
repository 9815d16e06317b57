"""Which linear layer a network's outputs come from, read from its forward pass without samples."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

__all__ = ["linear_layers", "made_by", "outputs_in"]

P = TypeVar("P")


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers that are called as modules, by name; attention reads the tensors of its own."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and not isinstance(layer, NonDynamicallyQuantizableLinear)
    }


def outputs_in(returned: Any, kind: type[P]) -> list[P]:
    """What of a kind is in nested tuples, lists, mappings and dataclasses; of those with a part "logits", in that."""
    if isinstance(returned, kind):
        return [returned]
    if isinstance(returned, Mapping):
        named = dict(returned)
    elif is_dataclass(returned):
        named = {part.name: getattr(returned, part.name) for part in fields(returned)}
    elif isinstance(returned, (tuple, list)):
        named = dict(zip(getattr(returned, "_fields", range(len(returned))), returned, strict=True))
    else:
        return []
    found = {name: outputs_in(part, kind) for name, part in named.items()}
    return found.get("logits") or [output for part in found.values() for output in part]


def made_by(module: nn.Module) -> list[str]:
    """Names of the linear layers that make an output each, alone; none where the forward pass does not tell.

    A layer that another of them reads, such as one that makes features which are returned beside the logits, is left
    out.  The pass runs on :class:`torch.fx.Proxy`: a part of the network whose Python needs numbers, such as a branch
    on them, is taken as one operation; if that part is the network itself, nothing is known.

    Args:
        module: the network, which stays as it is.

    Example:
        >>> made_by(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5), nn.LogSoftmax(-1)))
        ['2']
    """
    graph = fx.Graph()
    tracer = GraphAppendingTracer(graph)

    def symbol(name: str) -> fx.Proxy:
        return fx.Proxy(graph.placeholder(name), tracer)

    try:
        copied = copy.deepcopy(module, {id(p): p for p in module.parameters()})
        layers = linear_layers(copied)
        parts = {name for name, part in copied.named_modules() if name and linear_layers(part)}
        for name, part in copied.named_modules():
            part.__dict__.update({own: symbol(own) for own in part._parameters})
            for hooks in (part._forward_hooks, part._forward_pre_hooks):  # which may write elsewhere
                hooks.clear()
            if name:
                part.forward = _symbolic(name, part.forward if name in parts - layers.keys() else None, tracer)
        required = [p for p in inspect.signature(copied.forward).parameters.values() if p.default is p.empty]
        inputs = {p.name: symbol(p.name) for p in required if p.kind not in _VARIADIC}
        outputs = outputs_in(copied(**inputs), fx.Proxy)
    except Exception:  # whatever the Python of a network raises without numbers
        return []
    makers = {}
    for output in outputs:
        nearest = [node for node in _behind(output.node, parts) if node.target in parts]
        if len(nearest) == 1 and nearest[0].target in layers:
            makers[str(nearest[0].target)] = nearest[0]
    return [name for name, node in makers.items() if not any(node in _behind(m) for m in makers.values() if m != node)]


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _symbolic(name: str, forward: Callable[..., Any] | None, tracer: GraphAppendingTracer) -> Callable[..., Any]:
    """The forward pass of a part of the network, or one operation in its place."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if forward is not None:
            with suppress(Exception):  # as in made_by
                return forward(*args, **kwargs)
        return tracer.create_proxy("call_module", name, args, kwargs)

    return run


def _behind(node: fx.Node, ends: Container[Any] = ()) -> set[fx.Node]:
    """A node and what it is computed from, but nothing that a call of one of the modules ``ends`` is computed from."""
    found, waiting = set(), [node]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting.extend(() if one.op == "call_module" and one.target in ends else one.all_input_nodes)
    return found
