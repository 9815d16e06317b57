r"""Continual learning with hypernetworks, von Oswald et al. 2020, https://arxiv.org/abs/1906.00695.

Every task has an embedding :math:`e_t`, from which one hypernetwork makes the weights of its network. While task T is
learned, the weights that it makes for earlier tasks are held where they were, :math:`W^*_t`, before T:

.. math:: L = L_T\bigl(f(e_T; \theta)\bigr) + \frac{\beta}{T - 1} \sum_{t<T} \lVert f(e_t; \theta) - W^*_t \rVert^2

Only θ and :math:`e_T` are learned then, and no sample of an earlier task is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..functional import Generated
from ..hypernet import Chunked, Generator, Given, HyperNetwork, Target

__all__ = ["ContinualNetwork"]


class ContinualNetwork(nn.Module):
    """A network with weights for each of several tasks, which are learned one after the other.

    Call :meth:`begin` before each task, and add :meth:`penalty` to its loss. The embeddings of earlier tasks get no
    gradient from either.

    Args:
        model: any module; its own generated parameters are not used.
        tasks: how many tasks there will be at most.
        features: entries of the embedding of a task.
        generate: shell patterns of the names of the generated parameters; the others would be shared, and forgotten.
        generator: an embedding to weights, such as ``functools.partial(Chunked, chunk=256)``.
        strength: weight β of the penalty.

    Example:
        >>> network = ContinualNetwork(nn.Linear(4, 2), tasks=3)
        >>> x, y = torch.randn(20, 4), torch.randint(2, (20,))
        >>> optimizer = torch.optim.Adam(network.parameters())
        >>> for task in range(3):
        ...     network.begin(task)
        ...     optimizer.zero_grad()
        ...     loss = nn.functional.cross_entropy(network(x, task), y) + network.penalty()
        ...     loss.backward()
        ...     optimizer.step()
        >>> network(x, 0).shape, network.infer(x).shape
        (torch.Size([20, 2]), torch.Size([20]))
    """

    anchors: Tensor
    current: Tensor

    def __init__(
        self,
        model: nn.Module,
        tasks: int,
        *,
        features: int = 32,
        generate: Iterable[str] = ("*",),
        generator: Callable[[int, Target], Generator] = Chunked,
        strength: float = 0.01,
    ) -> None:
        super().__init__()
        self.network = Generated(model, generate)
        self.hyper = HyperNetwork(Given(features), generator(features, self.network.target))
        self.embeddings = nn.ParameterList(torch.randn(features) for _ in range(tasks))
        self.strength = strength
        self.register_buffer("anchors", torch.zeros(tasks, self.network.target.numel))
        self.register_buffer("current", torch.tensor(-1))

    def begin(self, task: int) -> None:
        """Begin to learn a task: from here on, the weights of those before it are held where they are.

        Raises:
            InputError: for a task that there is not, or that is not the next one.
        """
        following, tasks = int(self.current) + 1, len(self.embeddings)
        if following == tasks:
            raise InputError(f"the tasks of tasks={tasks} are all begun; give tasks={tasks + 1} or more")
        if task != following:
            raise InputError(f"expected task {following} to be next, got {task}: tasks are learned in order")
        if task:
            with torch.no_grad():
                self.anchors[:task] = self._weights(task)
        self.current.fill_(task)

    def penalty(self) -> Tensor:
        """What the weights of the tasks before this one have moved by; it is added to the loss of a batch."""
        task = int(self.current)
        if task < 1:
            return self.anchors.new_zeros(())
        moved = self._weights(task) - self.anchors[:task]
        return self.strength * moved.square().sum(-1).mean()

    def forward(self, x: Tensor, task: int) -> Tensor:
        """Outputs under the weights of one task."""
        return self.network(self.hyper(self.embeddings[task]), x)

    def of_all_tasks(self, x: Tensor) -> Tensor:
        """Outputs ``(T, N, *)`` of samples ``(N, *)`` under the weights of each task that was begun."""
        known = torch.stack(list(self.embeddings)[: int(self.current) + 1])
        return self.network.each(self.hyper(known), x.expand(len(known), *x.shape))

    def infer(self, x: Tensor) -> Tensor:
        """The task of each sample, ``(N,)``: that whose network is most certain, by the entropy of its softmax."""
        return torch.distributions.Categorical(logits=self.of_all_tasks(x)).entropy().argmin(0)

    def _weights(self, tasks: int) -> Tensor:
        """Weights ``(tasks, numel)`` of the first tasks, whose embeddings stay as they are."""
        return self.network.target.flatten(self.hyper(torch.stack(list(self.embeddings)[:tasks]).detach()))
