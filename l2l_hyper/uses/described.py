r"""Weights from a description of the task, given, inferred from a support set, or found by gradient steps on it.

.. math:: W = f(z; \theta), \qquad z \leftarrow g(\text{support}; \phi) \quad\text{or}\quad
   z \leftarrow z - \alpha\,\nabla_z L_{\text{support}}\bigl(f(z; \theta)\bigr)

The steps leave θ alone, as in Zintgraf et al. 2019, "CAVIA", https://arxiv.org/abs/1810.03642.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..data.episode import SupportSet
from ..errors import InputError
from ..functional import Generated
from ..hypernet import Full, Generator, HyperNetwork, Perceptron, Target
from ..methods.inner_loop import descend

__all__ = ["DescribedNetwork"]


class DescribedNetwork(nn.Module):
    r"""A network whose weights are made from a description z, :math:`W = f(z; \theta)`.

    Descriptions should have mean 0 and mean square 1: then the generated network keeps the variance of its activations
    at the start, and z = 0, where gradient steps begin, is the mean task.

    Args:
        model: any module; the parameters that are generated are not trained, and its others are.
        description: number Z of entries of a description.
        generate: shell patterns of the names of the generated parameters.
        generator: an embedding of ``width`` entries to weights, such as ``functools.partial(Chunked, chunk=64)``.
        width: entries of the embedding of z.
        infer: a set of samples ``(T, N, D)``, each joined with its target, to z ``(T, Z)``, such as
            :class:`~l2l_hyper.hypernet.DeepSets`.
        steps: gradient steps on z, from what is inferred or from 0.
        lr: learning rate α of the steps.

    Example:
        >>> from l2l_hyper.data.episode import squared_error
        >>> from l2l_hyper.hypernet import DeepSets
        >>> model = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 1))
        >>> network = DescribedNetwork(model, 2, infer=DeepSets(1 + 1, 2), steps=5)
        >>> x, z = torch.randn(16, 10, 1), torch.randn(16, 2)  # 16 tasks of 10 samples
        >>> network(x, z).shape  # zero-shot
        torch.Size([16, 10, 1])
        >>> support = SupportSet(x, torch.randn(16, 10, 1), ways=None, loss=squared_error)
        >>> z = network.adapt(support)  # inferred, then five gradient steps
        >>> network.freeze(z[0])
        Sequential(
          (0): Linear(in_features=1, out_features=40, bias=True)
          (1): ReLU()
          (2): Linear(in_features=40, out_features=1, bias=True)
        )
    """

    def __init__(
        self,
        model: nn.Module,
        description: int,
        *,
        generate: Iterable[str] = ("*",),
        generator: Callable[[int, Target], Generator] = Full,
        width: int = 64,
        infer: nn.Module | None = None,
        steps: int = 0,
        lr: float = 0.1,
    ) -> None:
        super().__init__()
        self.description = description
        self.network = Generated(model, generate)
        self.hyper = HyperNetwork(Perceptron(description, width), generator(width, self.network.target))
        self.infer = infer
        self.steps = steps
        self.lr = lr

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Outputs under the weights of z.

        Args:
            x: samples ``(N, *)``, or ``(T, N, *)`` of T tasks.
            z: a description ``(Z,)`` for all samples, or one for each task, ``(T, Z)``.  For one per sample give
                ``x.unsqueeze(1)``.

        Raises:
            InputError: for a description of another shape.
        """
        if z.dim() == 1:
            return self.network(self.hyper(z), x)
        if z.dim() != 2 or len(z) != len(x):
            raise InputError(
                f"expected one description, of shape ({self.description},), or as many as there are tasks, of shape "
                f"({len(x)}, {self.description}), got {tuple(z.shape)}; try z.expand({len(x)}, -1)"
            )
        return self.network.each(self.hyper(z), x)

    def adapt(self, support: SupportSet, adapted: Tensor | None = None) -> Tensor:
        """Descriptions ``(T, Z)`` of T tasks: inferred, then improved by gradient steps with θ fixed.

        Args:
            support: the support sets.
            adapted: descriptions to go on from, in the place of inferred ones.

        Raises:
            InputError: for a network that neither infers nor takes steps.
        """
        if self.infer is None and not self.steps:
            raise InputError("expected a network that can adapt: give infer= or steps=, or call it with a given z")
        z = self._begin(support) if adapted is None else adapted
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            for _ in range(self.steps):
                z = z if z.requires_grad else z.detach().requires_grad_()
                loss = support.loss(self(support.x, z), support.y).sum()
                z = descend(loss, {"z": z}, self.lr, second_order=differentiable)["z"]
                z = z if differentiable else z.detach()
        return z

    def predict(self, adapted: Tensor, query: Tensor) -> Tensor:
        """Outputs ``(T, Q, *)`` of queries ``(T, Q, *)``, under what :meth:`adapt` gave."""
        return self(query, adapted)

    def freeze(self, z: Tensor) -> nn.Module:
        """A plain copy of the model with the weights of one description ``(Z,)``; it saves and exports as any module.

        Raises:
            InputError: for several descriptions.
        """
        if z.dim() != 1:
            raise InputError(
                f"expected one description, of shape ({self.description},), got {tuple(z.shape)}; try z[0]"
            )
        with torch.no_grad():
            return self.network.freeze(self.hyper(z))

    def _begin(self, support: SupportSet) -> Tensor:
        if self.infer is None:
            return next(self.hyper.parameters()).new_zeros(len(support), self.description)
        targets = support.y.flatten(2) if support.ways is None else support.one_hot(support.x.dtype)
        return self.infer(torch.cat([support.x.flatten(2), targets], -1))
