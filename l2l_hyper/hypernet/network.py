"""HyperNetwork: an encoder and a generator joined, W = start + Δ(description)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .generators import Generator
from .target import Target

__all__ = ["HyperNetwork"]


class HyperNetwork(nn.Module):
    """A function from a task description to weights.

    Args:
        encoder: the description, in whatever tensors the encoder takes, to an embedding ``(*, E)``.
        generator: an embedding to ``{name: (*, *shape)}``.

    Example:
        >>> import torch
        >>> from torch.func import functional_call, vmap
        >>> from l2l_hyper.hypernet import Full, Given, Target
        >>> net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
        >>> hyper = HyperNetwork(Given(8), Full(8, Target.of(net)))
        >>> weights = hyper(torch.randn(5, 8))  # five tasks
        >>> vmap(lambda w, x: functional_call(net, w, (x,)))(weights, torch.randn(5, 10, 2)).shape
        torch.Size([5, 10, 1])
    """

    def __init__(self, encoder: nn.Module, generator: Generator) -> None:
        super().__init__()
        self.encoder = encoder
        self.generator = generator

    @property
    def target(self) -> Target:
        """The generated parameters."""
        return self.generator.target

    def forward(self, *description: Tensor, start: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Weights of shapes ``(*, *shape)``, added to ``start`` where one is given."""
        change = self.generator(self.encoder(*description), start)
        return change if start is None else {name: start[name] + delta for name, delta in change.items()}
