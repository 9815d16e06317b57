"""Which parameters of a module are generated, and how they lie in one vector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..errors import InputError

__all__ = ["Target"]


class Target:
    """Names and shapes of generated parameters, with exact inverses between a dict of them and a vector.

    Args:
        shapes: shape by name, in the order they lie in the vector.

    Example:
        >>> target = Target.of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), ["2.*"])
        >>> target
        Target({'2.weight': (2, 4), '2.bias': (2,)})
        >>> vector = torch.randn(7, target.numel)  # seven tasks
        >>> weights = target.unflatten(vector)
        >>> weights["2.weight"].shape
        torch.Size([7, 2, 4])
        >>> torch.equal(target.flatten(weights), vector)
        True
    """

    def __init__(self, shapes: Mapping[str, Iterable[int]]) -> None:
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        if not self.shapes:
            raise InputError("a target needs at least one parameter, got none; try Target.of(module, ['*'])")

    @classmethod
    def of(cls, module: nn.Module, patterns: Iterable[str] = ("*",)) -> Target:
        """Choose the parameters of ``module`` whose name matches one of the shell patterns, in the module's order.

        Raises:
            InputError: if a pattern matches no parameter; the message lists the names.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        named = {name: p.shape for name, p in module.named_parameters()}
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in named):
                raise InputError(f"pattern {pattern!r} matches no parameter; try one of {', '.join(named) or 'none'}")
        return cls({n: s for n, s in named.items() if any(fnmatchcase(n, p) for p in patterns)})

    @property
    def numel(self) -> int:
        """Length of the vector."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def flatten(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Lay weights of shapes ``(*, *shape)`` in one vector of shape ``(*, numel)``."""
        if set(weights) != set(self.shapes):
            raise InputError(f"expected weights {sorted(self.shapes)}, got {sorted(weights)}")
        parts = []
        for name, shape in self.shapes.items():
            value = weights[name]
            batch = value.shape[: value.dim() - len(shape)]
            if value.shape[len(batch) :] != shape:
                raise InputError(f"{name}: expected shape (*, {', '.join(map(str, shape))}), got {tuple(value.shape)}")
            parts.append(value.reshape(*batch, -1))
        return torch.cat(parts, -1)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Inverse of :meth:`flatten`: a vector of shape ``(*, numel)`` to weights of shapes ``(*, *shape)``."""
        if vector.shape[-1] != self.numel:
            raise InputError(f"expected a vector of shape (*, {self.numel}), got {tuple(vector.shape)}")
        parts = vector.split([math.prod(shape) for shape in self.shapes.values()], -1)
        return {
            name: part.reshape(*vector.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Target) and list(self.shapes.items()) == list(other.shapes.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Target({str({name: tuple(shape) for name, shape in self.shapes.items()})})"
