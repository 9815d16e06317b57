"""The last linear layer of a network: found, checked, and recorded as samples pass through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.func import debug_unwrap
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from ..errors import InputError
from ..functional import autocast_enabled, full_precision, slots
from .trace import linear_layers, made_by, outputs_in

__all__ = ["Head", "HeadPass", "find_head", "last_layer", "record_head", "recording", "tied_to"]


class Head(nn.Linear):
    r"""The last layer, :math:`W x + b + Q x^2`, computed in the precision of its weights.

    With a ``centre`` c it reads features of unit length, :math:`(x - c) / \lVert x - c \rVert`, in the place of x.

    Outputs such as minus a squared distance are small differences of large numbers, for which bfloat16 has too few
    digits: neither :class:`torch.autocast` nor a network of half precision changes how they are computed.  Q is there
    only for tasks whose classes have different numbers of shots, see
    :class:`~l2l_hyper.methods.base_learners.Gaussian`.
    """

    quadratic: Tensor | None
    centre: nn.Parameter | None

    @classmethod
    def of(cls, linear: nn.Linear) -> Head:
        """The same layer, with the same tensors."""
        head = cls.__new__(cls)
        head.__dict__ = {k: v.copy() if isinstance(v, dict) else v for k, v in linear.__dict__.items()}
        head.register_buffer("quadratic", None)
        head.register_parameter("centre", None)
        return head

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self._buffers:  # of a task, which may have ways of its own
            value = state_dict.get(prefix + name)
            if value is not None:
                self._buffers[name] = self.weight.new_empty(value.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        """Outputs in the precision of the weights, and of the input outside :class:`torch.autocast`."""
        dtype = self.weight.dtype if autocast_enabled(input.device) else input.dtype
        with full_precision(input.device):
            return last_layer(self.read(input), self.weight, self.bias, self.quadratic).to(dtype)

    def read(self, input: Tensor) -> Tensor:
        """What the weights are applied to."""
        x = input.to(self.weight.dtype)
        return x if self.centre is None else F.normalize(x - self.centre, dim=-1)


def last_layer(x: Tensor, weight: Tensor, bias: Tensor | None, quadratic: Tensor | None) -> Tensor:
    """:math:`W x + b + Q x^2`, ``(N, C)``, of ``(N, D)``."""
    outputs = F.linear(x, weight, bias)
    return outputs if quadratic is None else outputs + F.linear(x.square(), quadratic)


@dataclass(frozen=True)
class HeadPass:
    """What one call of a network shows of its last layer.

    Attributes:
        change: what the outputs of the layer are changed by.
        seen: what each pass through the layer read and made.
        marks: while it is not known yet whether the outputs come from the layer: for every linear layer by name a zero
            that is added to its outputs, by which the graph shows where they go.
    """

    change: Callable[[Tensor], Tensor] | None = None
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    marks: dict[str, Tensor] = field(default_factory=dict)

    def of(self, returned: Any, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``(N, D)`` and logits ``(N, C)`` of the layer, and the outputs that are made of the logits.

        Where the layer reads positions, such as tokens ``(N, L, D)``, each of them is a row.

        Args:
            returned: what the network returned: a tensor, or a tuple, mapping or dataclass with the outputs in it.
            name: of the layer.

        Raises:
            InputError: if the layer did not run once, or no output has as many numbers as it made.
        """
        if len(self.seen) == 1:
            features, logits = self.seen[0]
            fitting = [t for t in outputs_in(returned, Tensor) if t.numel() == logits.numel() and t.is_floating_point()]
            same = [t for t in fitting if t is logits]
            if fitting:
                rows = [t.flatten(0, -2) if t.dim() > 2 else t for t in (features, logits)]
                return rows[0], rows[1], (same or fitting)[0]
        raise self._refusal(returned, name)

    def check(self, returned: Any, outputs: Tensor, name: str, *, alone: bool) -> bool:
        """Whether the graph shows that the outputs come from the layer; False where there is no graph to tell.

        Args:
            returned: what the network returned.
            outputs: those of it that are taken to be made of the logits.
            name: of the layer.
            alone: whether they may come from no other linear layer besides.

        Raises:
            InputError: if they come from others.
        """
        if not self.marks or _node(outputs) is None:
            return False
        origins = _origins(outputs, self.marks)
        if name not in origins:
            raise self._refusal(returned, name)
        if alone and len(origins) > 1:
            raise InputError(
                f"expected outputs that are made of those of one nn.Linear, got a mixture of {_quoted(origins)}; "
                "try base_learner='gradient', or l2l_hyper.HyperSGD, which takes any module"
            )
        return True

    def _refusal(self, returned: Any, name: str) -> InputError:
        origins = [_origins(t, self.marks) for t in outputs_in(returned, Tensor)]
        other = next((found for found in origins if len(found) == 1 and found != [name]), None)
        if other:
            return InputError(
                f"the outputs come from the nn.Linear {other[0]!r}, not from {name!r}, the head= given or else the "
                f"last that the model registers; try head={other[0]!r}, or register it last"
            )
        return InputError(
            f"expected a model that makes its outputs from those of its last nn.Linear ({name!r}), which runs once, "
            f"got {len(self.seen)} passes through it and outputs of shape {_shapes(returned)}; try head= with the "
            "name of the layer that makes them, or l2l_hyper.HyperSGD, which takes any module"
        )


_NOW: ContextVar[HeadPass | None] = ContextVar("l2l_hyper_head", default=None)


@contextmanager
def recording(module: nn.Module, change: Callable[[Tensor], Tensor] | None, *, find_origin: bool) -> Iterator[HeadPass]:
    """Within the block, the last layer of a network shows what passes through it.

    Args:
        module: the network.
        change: what the outputs of the layer are changed by.
        find_origin: whether to mark the outputs of every linear layer, see :meth:`HeadPass.check`.
    """
    now = HeadPass(change)
    hooks = []
    for name, layer in linear_layers(module).items() if find_origin else ():
        mark = now.marks[name] = torch.zeros((), device=layer.weight.device, requires_grad=True)
        hooks.append(layer.register_forward_hook(lambda _, __, y, mark=mark: _marked(y, mark), prepend=True))
    token = _NOW.set(now)
    try:
        yield now
    finally:
        _NOW.reset(token)
        for hook in hooks:
            hook.remove()


def find_head(model: nn.Module, name: str | None = None) -> str:
    """The name of the last layer: the one that is given, else the linear layer that makes the outputs.

    Where the forward pass does not tell which layer that is, see :func:`~l2l_hyper.methods.trace.made_by`, it is taken
    to be the last that the model registers, and :meth:`HeadPass.check` compares.

    Args:
        model: the network.
        name: of the layer, "" for the model itself.

    Raises:
        InputError: if there is no such layer, or several make an output each, or its weight is not a parameter of its
            own, such as under ``weight_norm``; if the model has lazy layers without a shape.
    """
    lazy = [name for name, p in (*model.named_parameters(), *model.named_buffers()) if is_lazy(p)]
    if lazy:
        raise InputError(
            f"expected a model whose parameters have shapes, {lazy[0]!r} has none; call it on a batch first"
        )
    linear = linear_layers(model)
    if not linear:
        raise InputError(
            f"expected a model whose last layer is an nn.Linear, got {type(model).__name__} without one; "
            "wrap it as nn.Sequential(model, nn.Linear(features, ways))"
        )
    if name is not None and name not in linear:
        raise InputError(f"head={name!r} is no nn.Linear of the model; choose among {_quoted(linear)}")
    if name is None:
        makers = made_by(model) if len(linear) > 1 else []
        if len(makers) > 1:
            raise InputError(
                f"expected outputs that are made by one nn.Linear, got one of each of {_quoted(makers)}; name the last "
                "layer with head=, or return its outputs alone or in a mapping, as 'logits'"
            )
        name = (makers or list(linear))[-1]
    head = linear[name]
    for part in ("weight", "bias"):
        if part not in head._parameters and part not in head._buffers:
            raise InputError(
                f"expected a last layer with a {part} of its own, that of {name!r} is computed from others by "
                f"weight_norm, spectral_norm or the like; take it off ({_taken_off(head, name, part)}) or choose "
                "another layer with head="
            )
    return name


def tied_to(model: nn.Module, name: str) -> str | None:
    """The place that holds the weight of a linear layer besides, such as an embedding; ``None`` if there is none."""
    own = f"{name}.weight" if name else "weight"
    places = next((held for held in slots(model).values() if own in held), [])
    return next((place for place in places if place != own), None)


def record_head(module: nn.Module, name: str) -> nn.Module:
    """The module with its last layer a :class:`Head` wherever the tree holds it, and its passes recorded."""
    linear = module.get_submodule(name)
    head: nn.Module = Head.of(linear) if type(linear) is nn.Linear else linear
    if _record not in head._forward_hooks.values():  # the network may have been seen in this way before
        head.register_forward_hook(_record)
    if linear is module:
        return head
    for parent in list(module.modules()):
        parent._modules.update({key: head for key, child in parent._modules.items() if child is linear})
    return module


def _record(head: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    now = _NOW.get()
    if now is not None:
        output = output if now.change is None else now.change(output)
        features = head.read(inputs[0]) if isinstance(head, Head) else inputs[0]
        now.seen.append((features.to(output.dtype), output))
    return output


def _marked(output: Any, mark: Tensor) -> Any:
    return output + mark if isinstance(output, Tensor) and output.is_floating_point() else output


def _node(tensor: Tensor) -> Node | None:
    """Where the graph of a tensor begins, also within ``vmap``."""
    return debug_unwrap(tensor).grad_fn


def _origins(outputs: Tensor, marks: Mapping[str, Tensor]) -> list[str]:
    """Names of the linear layers from whose outputs a tensor is made without another linear layer between."""
    names = {id(mark): name for name, mark in marks.items()}
    found: list[str] = []
    met = set()
    waiting = [_node(outputs)]
    while waiting:
        node = waiting.pop()
        if node is None or node in met:
            continue
        met.add(node)
        following = [f for f, _ in node.next_functions]
        here = [names[id(f.variable)] for f in following if id(getattr(f, "variable", None)) in names]  # type: ignore[union-attr]
        found.extend(name for name in here if name not in found)
        if not here:
            waiting.extend(following)
    return sorted(found)


def _shapes(returned: Any) -> str:
    shapes = [str(tuple(t.shape)) for t in outputs_in(returned, Tensor)]
    return " and ".join(shapes) if shapes else f"no tensors but {type(returned).__name__}"


def _quoted(names: Any) -> str:
    return ", ".join(map(repr, names))


def _taken_off(head: nn.Module, name: str, part: str) -> str:
    layer = f"model.{name}" if name else "model"
    if hasattr(head, "parametrizations"):
        return f"torch.nn.utils.parametrize.remove_parametrizations({layer}, {part!r})"
    if hasattr(head, f"{part}_g"):
        return f"torch.nn.utils.remove_weight_norm({layer})"
    if hasattr(head, f"{part}_u"):
        return f"torch.nn.utils.remove_spectral_norm({layer})"
    return f"torch.nn.utils.prune.remove({layer}, {part!r}) where it is pruned"
