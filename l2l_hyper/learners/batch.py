"""Making weights for a batch of tasks: pure functions, which one task goes through as well."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from ..errors import InputError
from ..hypernet.support import Support
from ..nn import (
    FullPrecisionLinear,
    Normalization,
    autocast_enabled,
    autocast_now,
    call,
    convert_norm,
    folding_pays,
    full_precision,
    share_copy,
    slots,
    statistics_of,
    task_convolutions,
    tensors,
    update_running,
)

__all__ = ["Adapted", "BatchLearner", "Pass", "one_task", "with_tasks"]

Statistics = dict[str, tuple[Tensor, Tensor]]


class Pass(NamedTuple):
    """What one forward pass shows: logits are the outputs of the last linear layer, features its inputs."""

    outputs: Tensor
    logits: Tensor
    features: Tensor
    statistics: Statistics


Observe = Callable[[dict[str, Tensor]], Pass]


@dataclass(frozen=True)
class Adapted:
    """What adaptation gives a batch of T tasks.

    Attributes:
        weights: the generated weights by name, each with a leading task dimension.
        statistics: mean and variance ``(T, C)`` of the support set by name of the normalization layer.
        steps: how often the tasks were adapted.
    """

    weights: dict[str, Tensor]
    statistics: Statistics = field(default_factory=dict)
    steps: int = 0


class BatchLearner(nn.Module):
    """A network some of whose weights are made anew for each task; subclasses say how in :meth:`update`.

    Args:
        model: the network.  Its parameters are shared, not copied; its BatchNorm layers are seen through
            :class:`~l2l_hyper.nn.TaskNorm`.  Its last layer must be an ``nn.Linear``;
            what follows it without parameters, such as a log-softmax, is fine.
        normalization: "support", "transductive" or "running", see :class:`~l2l_hyper.nn.TaskNorm`.
        first_order: whether gradients taken on the support set are constants.
        allow_unused: whether generated weights on which the outputs do not depend are accepted.

    Raises:
        InputError: if ``model`` has no linear layer.
    """

    module: nn.Module
    start_takes_gradients: bool = False

    def __init__(
        self, model: nn.Module, *, normalization: Normalization, first_order: bool, allow_unused: bool
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise InputError(f"expected an nn.Module to adapt, got {type(model).__name__}")
        # A copy of the tree with the same tensors: what is changed below does not show in the user's model.
        self.module = convert_norm(share_copy(model, copy_buffers=False), normalization)
        linear = [name for name, m in self.module.named_modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise InputError(
                f"expected a model whose last layer is an nn.Linear, got {type(model).__name__} without one; "
                "wrap it as nn.Sequential(model, nn.Linear(features, ways))"
            )
        self.head_name = linear[-1]
        if type(self.head) is nn.Linear:
            self.head.__class__ = FullPrecisionLinear
        self.generated: tuple[str, ...] = ()
        self.first_order = first_order
        self.allow_unused = allow_unused

    @property
    def head(self) -> nn.Linear:
        """The last layer of the network."""
        return self.module.get_submodule(self.head_name)  # type: ignore[return-value]

    @cached_property
    def _places(self) -> dict[str, list[str]]:
        return slots(self.module)  # which cannot change, and takes as long as an operation or ten

    def update(
        self, support: Support, observe: Callable[[dict[str, Tensor]], Support], first: bool
    ) -> dict[str, Tensor]:
        """New weights for a batch of tasks.

        Args:
            support: what the network shows on the support sets under its current weights.
            observe: the same under other weights.
            first: whether these tasks are adapted for the first time.
        """
        raise NotImplementedError

    def initial(self, tasks: int = 1) -> Adapted:
        """The network's own values of the generated weights, for a number of tasks."""
        return Adapted({name: own.expand(tasks, *own.shape) for name, own in tensors(self.module, self.generated)})

    def adapt_tasks(self, support: Tensor, labels: Tensor, *, ways: int | None = None, steps: int = 1) -> Adapted:
        """Adapt to T tasks at once; every class of a task needs a support sample, which is not checked here.

        Args:
            support: support samples, shape ``(T, N, ...)``.
            labels: their classes, shape ``(T, N)``, integer; or values, shape ``(T, N, C)``.
            ways: number of classes; defaults to the outputs of the network's last layer.
            steps: how often to adapt.
        """
        observe = self._over_tasks(support, None)
        state = self._adapt_explicitly(self.initial(len(support)), labels, ways, observe, steps)
        if self.training:
            update_running(self.module, state.statistics)
        return state

    def predict_tasks(self, adapted: Adapted, x: Tensor) -> Tensor:
        """Outputs ``(T, Q, C)`` on samples ``(T, Q, ...)`` of the tasks that were adapted to."""
        return self._over_tasks(x, adapted.statistics)(adapted.weights).outputs

    def _over_tasks(self, x: Tensor, statistics: Statistics | None) -> Observe:
        """Run every task at once; weights that are not generated are shared, so their layers see one large batch."""
        if len(x) == 1:
            return one_task(self._run, (x[0],), {}, statistics)
        over = (0, None if statistics is None else 0, 0)

        def observe(weights: dict[str, Tensor]) -> Pass:
            return vmap(self._run, in_dims=over, randomness="different")(weights, statistics, x)

        return observe

    def _run(self, weights: dict[str, Tensor], statistics: Statistics | None, *args: Any, **kwargs: Any) -> Pass:
        """One task through the network."""
        seen: list[Tensor] = []
        hook = self.head.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
        try:
            second_order = self.start_takes_gradients and self.changes_body and not self.first_order
            # torch.autocast does not reach into vmap; it reaches the convolutions that are taken out of it.
            taken_out = self.changes_body or autocast_enabled(self.head.weight.device)
            with (
                task_convolutions() if taken_out or any(map(folding_pays, args)) else nullcontext(),
                statistics_of(self.module, statistics, second_order=second_order) as recorded,
            ):
                outputs = call(self.module, self._places, weights, *args, **kwargs)
        finally:
            hook.remove()
        if len(seen) != 2 or not isinstance(outputs, Tensor) or outputs.numel() != seen[1].numel():
            raise InputError(
                f"expected a model that makes its outputs from those of its last nn.Linear ({self.head_name!r}), which "
                "runs once, got one that does not; try l2l_hyper.HyperSGD, which takes any module"
            )
        return Pass(outputs, seen[1], seen[0].to(seen[1].dtype), {**(statistics or {}), **recorded})

    def _adapt_explicitly(
        self, state: Adapted, labels: Tensor, ways: int | None, observe: Observe, steps: int = 1
    ) -> Adapted:
        """Steps with the loss of the labels; without gradients around them, none flow out of any of them."""
        differentiable = torch.is_grad_enabled()
        with torch.set_grad_enabled(differentiable or self.start_takes_gradients):
            if not differentiable:
                state = replace(state, weights=self._leaves(state.weights))
            seen: Pass | None = None
            for _ in range(steps):
                if seen is None:
                    seen = observe(state.weights)
                elif not self.changes_body:
                    weight, bias = (state.weights[name] for name in self.generated[:2])
                    seen = seen._replace(logits=vmap(F.linear)(seen.features, weight, bias))
                targets, delta = self._explicit_signal(seen.logits, labels, ways)
                state, seen = self._step(state, seen, targets, delta, observe, differentiable=differentiable)
        if differentiable:
            return state
        return replace(
            state,
            weights={n: w.detach() for n, w in state.weights.items()},
            statistics={n: (mean.detach(), var.detach()) for n, (mean, var) in state.statistics.items()},
        )

    def _step(
        self,
        state: Adapted,
        seen: Pass,
        targets: tuple[Tensor, bool],
        delta: Tensor,
        observe: Observe,
        *,
        differentiable: bool = True,
    ) -> tuple[Adapted, Pass | None]:
        """One step, and what the network shows after it if that came up (but for the logits where only they change)."""
        second_order = differentiable and not self.first_order

        def support_of(seen: Pass, weights: dict[str, Tensor]) -> Support:
            return Support(
                seen.features, targets[0], seen.logits, delta, weights, targets[1], second_order, self.allow_unused
            )

        device = seen.logits.device
        autocast = autocast_now(device)  # for the network; a closed form and what is added to it need every digit

        def again(weights: dict[str, Tensor]) -> Support:
            nonlocal seen
            with autocast:
                seen = observe(weights)
            return support_of(seen, weights)

        with full_precision(device):
            weights = self.update(support_of(seen, state.weights), again, state.steps == 0)
        if not differentiable:
            weights = self._leaves(weights)
        after = None if self.changes_body else seen
        if self.changes_body and seen.statistics:
            after = seen = observe(weights)  # for the queries, the statistics under the new weights
        return Adapted(weights, seen.statistics, state.steps + 1), after

    @property
    def changes_body(self) -> bool:
        """Whether more than the last layer is generated."""
        return len(self.generated) > 2

    def _explicit_signal(self, logits: Tensor, labels: Tensor, ways: int | None) -> tuple[tuple[Tensor, bool], Tensor]:
        """Targets and δ of the mean cross-entropy (integer labels) or mean squared error (values) of each task."""
        if labels.is_floating_point():
            if labels.shape != logits.shape:
                raise InputError(f"expected values of shape {tuple(logits.shape)}, got {tuple(labels.shape)}")
            return (labels, False), 2 * (logits - labels) / logits[0].numel()
        targets = F.one_hot(labels, logits.shape[-1] if ways is None else ways).to(logits.dtype)
        if targets.shape != logits.shape:
            return (targets, True), torch.zeros_like(targets)  # other ways than the network's: no loss to derive
        return (targets, True), (logits.softmax(-1) - targets) / logits.shape[-2]

    def _frozen(self) -> list[str]:
        own = ((n, p) for n, p in self.module.named_parameters() if isinstance(p, nn.Parameter))
        return [n for n, p in own if n in self.generated and not p.requires_grad]

    def _leaves(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same values, cut off from where they come from."""
        frozen = self._frozen() if torch.is_grad_enabled() else self.generated
        return {n: w.detach().requires_grad_(n not in frozen) for n, w in weights.items()}


def one_task(
    run: Callable[..., Pass], args: tuple[Any, ...], kwargs: dict[str, Any], statistics: Statistics | None = None
) -> Observe:
    """Run one task without vmap: faster, and any Python that the user's model holds is fine."""
    given = None if statistics is None else {name: (mean[0], var[0]) for name, (mean, var) in statistics.items()}
    return lambda weights: with_tasks(run({n: w[0] for n, w in weights.items()}, given, *args, **kwargs))


def with_tasks(one: Pass) -> Pass:
    """A task dimension in front of what one task shows."""
    statistics = {name: (mean[None], var[None]) for name, (mean, var) in one.statistics.items()}
    return Pass(one.outputs[None], one.logits[None], one.features[None], statistics)
