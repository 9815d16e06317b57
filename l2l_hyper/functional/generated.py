"""Generated: a network that holds none of the weights that a hypernetwork makes for it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from ..hypernet.target import Target
from .call import call, install, share_copy, slots

__all__ = ["Generated"]

# Layers without a rule for vmap, or whose second-order gradients through it are wrong.
_ONE_BY_ONE = (nn.RNNBase, nn.RNNCellBase, nn.modules.batchnorm._NormBase, nn.LayerNorm)


class Generated(nn.Module):
    """A network some of whose weights are given with each call; it holds none of them.

    Its other parameters, and its buffers, are those of the model.

    Args:
        model: any module.  It is left as it is.
        generate: shell patterns of the names of the parameters that are given.

    Raises:
        InputError: if a pattern matches no parameter.

    Example:
        >>> network = Generated(nn.Linear(3, 2), ["weight"])
        >>> [name for name, _ in network.named_parameters()]
        ['module.bias']
        >>> network({"weight": torch.zeros(2, 3)}, torch.randn(5, 3)).shape
        torch.Size([5, 2])
        >>> network.each({"weight": torch.randn(7, 2, 3)}, torch.randn(7, 5, 3)).shape  # seven weights
        torch.Size([7, 5, 2])
    """

    def __init__(self, model: nn.Module, generate: Iterable[str] = ("*",)) -> None:
        super().__init__()
        self.target = Target.of(model, generate)
        self.places = slots(model)
        self.module = share_copy(model)
        install(self.module, self.places, dict.fromkeys(self.target.shapes))

    def forward(self, weights: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """What the model answers under weights of shapes ``shape``."""
        return call(self.module, self.places, weights, *args, **kwargs)

    def each(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs ``(T, N, *)`` of samples ``(T, N, *)`` under T different weights of shapes ``(T, *shape)``.

        One pass for all of them, but where the model has layers that must read one batch after the other.
        """
        if any(isinstance(layer, _ONE_BY_ONE) for layer in self.module.modules()):
            return torch.stack([self({name: w[t] for name, w in weights.items()}, x[t]) for t in range(len(x))])
        return vmap(lambda w, x: self(w, x), randomness="different")(weights, x)

    def freeze(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A plain copy of the model that holds these weights, as parameters of its own."""
        frozen = copy.deepcopy(self.module)
        own = {name: nn.Parameter(weights[name].detach().clone()) for name in self.target.shapes}
        install(frozen, self.places, own)
        return frozen
