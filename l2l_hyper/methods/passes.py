"""What goes into a network for some tasks, what it shows of them, and what adaptation gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..functional import Statistics

__all__ = ["Adapted", "Inputs", "Pass", "stacked"]


class Pass(NamedTuple):
    """What the support sets or queries of T tasks show on their way through the network.

    Attributes:
        outputs: of the network, ``(T, N, *)``; where it returns several tensors, the one that is made of the logits.
        logits: of its last linear layer, ``(T, N, C)``; what follows it without parameters makes the outputs.
        features: what the last linear layer reads, ``(T, N, D)``; of tokens ``(T, N, L, D)``, each is a row of its own
            here and in the logits, ``(T, N·L, D)``.
        statistics: of the normalization layers, ``(T, channels)`` each.
        layers: outputs ``(T, N, *)`` of the inner layers that were asked for, by name.
        returned: what the network itself returned for one task that was run alone.
    """

    outputs: Tensor
    logits: Tensor
    features: Tensor
    statistics: Statistics
    layers: dict[str, Tensor]
    returned: Any = None

    def of_rows(self, rows: Tensor) -> Pass:
        """The same with those rows of features, logits and outputs alone where ``rows``, ``(N·L,)``, is true.

        Raises:
            InputError: if there are more or fewer rows.
        """
        if len(rows) != self.logits.shape[1]:
            raise InputError(f"expected a label for each of {self.logits.shape[1]} rows of logits, got {len(rows)}")
        outputs, logits, features = (t.flatten(1, -2)[:, rows] for t in self[:3])
        return self._replace(outputs=outputs, logits=logits, features=features)


@dataclass(frozen=True)
class Adapted:
    """What adaptation gives T tasks.

    Attributes:
        weights: the task's own weights by name, each with a leading task dimension.
        statistics: mean and variance ``(T, channels)`` of the support set by name of the normalization layer.
        penalty: what the loss of each task gains, ``(T,)``.
        steps: how often the tasks were adapted.
        sums: of the weights to which something was added, what they were, what was generated, and what was distilled.
    """

    weights: dict[str, Tensor]
    statistics: Statistics = field(default_factory=dict)
    penalty: Tensor | float = 0.0
    steps: int = 1
    sums: dict[str, tuple[Tensor, Tensor | None, Tensor | None]] = field(default_factory=dict)

    def converted(self, change: Callable[[Tensor], Tensor]) -> Adapted:
        """The same with every tensor changed."""
        statistics = {name: (change(mean), change(var)) for name, (mean, var) in self.statistics.items()}
        penalty = change(self.penalty) if isinstance(self.penalty, Tensor) else self.penalty
        weights = {name: change(w) for name, w in self.weights.items()}

        def of(added: Tensor | None) -> Tensor | None:
            return None if added is None else change(added)

        sums = {name: (change(base), of(one), of(other)) for name, (base, one, other) in self.sums.items()}
        return Adapted(weights, statistics, penalty, self.steps, sums)

    def detached(self) -> Adapted:
        """The same values without a graph."""
        return self.converted(Tensor.detach)


@dataclass(frozen=True)
class Inputs:
    """The arguments of one task's pass, for a network that takes more than a tensor.

    Attributes:
        args: by position.
        kwargs: by name.
        rows: which rows of the logits there are, ``(N·L,)``, such as those of tokens that are no padding; all if None.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: Tensor | None = None

    def __len__(self) -> int:
        return 1


def stacked(passes: Sequence[Pass]) -> Pass:
    """Passes of one task each as one pass of all."""
    outputs, logits, features = (torch.cat(parts) for parts in list(zip(*passes, strict=True))[:3])
    first = passes[0]
    statistics = {
        name: (torch.cat([p.statistics[name][0] for p in passes]), torch.cat([p.statistics[name][1] for p in passes]))
        for name in first.statistics
    }
    layers = {name: torch.cat([p.layers[name] for p in passes]) for name in first.layers}
    return Pass(outputs, logits, features, statistics, layers)
