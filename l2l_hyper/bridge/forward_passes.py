"""The forward passes of a learner, and which of them a loss depends on."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

from .penalty import Switch

__all__ = ["ForwardPass", "passes_behind"]

_RECORD = "l2l_hyper"  # where the graph of a forward pass keeps the record of it


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass that ``adapt(loss)`` may turn out to be about.

    It lives in the graph of the outputs and goes with it, so it holds nothing that comes later in the graph.
    """

    learner: weakref.ref[nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    features: Tensor
    logits: Tensor
    statistics: dict[str, tuple[Tensor, Tensor]]
    weights: dict[str, Tensor]
    penalty: Switch

    def keep_in(self, node: Node) -> None:
        """Let the graph hold this pass where its logits are made."""
        _metadata(node)[_RECORD] = self


def _metadata(node: Node) -> dict[Any, Any]:
    return node.metadata  # type: ignore[return-value]  # a dictionary, whatever torch's types say


def passes_behind(loss: Tensor, learner: nn.Module) -> tuple[list[tuple[Node, ForwardPass]], list[str]]:
    """The forward passes of a learner that a loss depends on, and the names of its tensors that are reached beside."""
    held = [*learner.named_parameters(), *learner.named_buffers()]
    ends = {tensor.grad_fn if tensor.grad_fn is not None else id(tensor): name for name, tensor in held}
    passes: list[tuple[Node, ForwardPass]] = []
    beside: list[str] = []
    met: set[Node] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in met:
            continue
        met.add(node)
        record = _metadata(node).get(_RECORD)
        end = ends.get(node) or ends.get(id(getattr(node, "variable", None)))
        if record is not None and record.learner() is learner:
            passes.append((node, record))
        elif end is not None:
            beside.append(end)
        else:
            waiting.extend(following for following, _ in node.next_functions)
    return passes, sorted(beside)
