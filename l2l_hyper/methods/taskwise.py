"""A network seen by many tasks: all of them in one pass, each with weights and normalization statistics of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from .. import kernels
from ..data.episode import SupportSet
from ..errors import InputError
from ..functional import (
    Statistics,
    autocast_enabled,
    call,
    full_precision,
    share_copy,
    slots,
    statistics_of,
    tensors,
    update_running,
)

__all__ = ["Adapted", "Head", "Inputs", "Pass", "TaskwiseNetwork", "class_means", "linear_map"]


class Pass(NamedTuple):
    """What the support sets or queries of T tasks show on their way through the network.

    Attributes:
        outputs: of the network, ``(T, N, *)``.
        logits: of its last linear layer, ``(T, N, C)``; what follows it without parameters makes the outputs.
        features: what the last linear layer reads, ``(T, N, D)``.
        statistics: of the normalization layers, ``(T, channels)`` each.
        layers: outputs ``(T, N, *)`` of the inner layers that were asked for, by name.
    """

    outputs: Tensor
    logits: Tensor
    features: Tensor
    statistics: Statistics
    layers: dict[str, Tensor]


@dataclass(frozen=True)
class Adapted:
    """What adaptation gives T tasks.

    Attributes:
        weights: the task's own weights by name, each with a leading task dimension.
        statistics: mean and variance ``(T, channels)`` of the support set by name of the normalization layer.
        penalty: what the loss of each task gains, ``(T,)``.
        steps: how often the tasks were adapted.
        base: those of the weights to which something generated was added, without it.
    """

    weights: dict[str, Tensor]
    statistics: Statistics = field(default_factory=dict)
    penalty: Tensor | float = 0.0
    steps: int = 1
    base: dict[str, Tensor] = field(default_factory=dict)

    def converted(self, change: Callable[[Tensor], Tensor]) -> Adapted:
        """The same with every tensor changed."""
        statistics = {name: (change(mean), change(var)) for name, (mean, var) in self.statistics.items()}
        penalty = change(self.penalty) if isinstance(self.penalty, Tensor) else self.penalty
        weights, base = ({name: change(w) for name, w in of.items()} for of in (self.weights, self.base))
        return Adapted(weights, statistics, penalty, self.steps, base)

    def detached(self) -> Adapted:
        """The same values without a graph."""
        return self.converted(Tensor.detach)


@dataclass(frozen=True)
class _HeadPass:
    """What passes through the last layer during one call, and what its outputs are changed by."""

    change: Callable[[Tensor], Tensor] | None
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)


_HEAD: ContextVar[_HeadPass | None] = ContextVar("l2l_hyper_head", default=None)


class Head(nn.Linear):
    r"""The last layer, :math:`W x + b + Q x^2`, in the precision of its weights whatever :class:`torch.autocast` says.

    With a ``centre`` c it reads features of unit length, :math:`(x - c) / \lVert x - c \rVert`, in the place of x.

    Outputs such as minus a squared distance are small differences of large numbers, for which bfloat16 has too few
    digits.  Q is there only for tasks whose classes have different numbers of shots, see
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
        """Outputs in the precision of the weights."""
        with full_precision(input.device):
            x = self.read(input)
            outputs = F.linear(x, self.weight, self.bias)
            return outputs if self.quadratic is None else outputs + F.linear(x.square(), self.quadratic)

    def read(self, input: Tensor) -> Tensor:
        """What the weights are applied to."""
        x = input.to(self.weight.dtype)
        return x if self.centre is None else F.normalize(x - self.centre, dim=-1)


@dataclass(frozen=True)
class Inputs:
    """The arguments of one task's pass, for a network that takes more than a tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __len__(self) -> int:
        return 1


class TaskwiseNetwork(nn.Module):
    """A network that runs for T tasks at once, under weights and statistics of each task's own.

    Weights that are not a task's own are shared, so their layers see one large batch.

    Args:
        model: the network.  Its parameters are shared, not copied.  Its last layer must be an ``nn.Linear``; what
            follows it without parameters, such as a log-softmax, is fine.

    Raises:
        InputError: if ``model`` has no linear layer.

    Example:
        >>> network = TaskwiseNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5)))
        >>> seen = network(torch.randn(16, 10, 4))  # 16 tasks of 10 samples
        >>> seen.features.shape, seen.outputs.shape
        (torch.Size([16, 10, 8]), torch.Size([16, 10, 5]))
    """

    module: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise InputError(f"expected an nn.Module to adapt, got {type(model).__name__}")
        # A copy of the tree with the same tensors: what is changed below does not show in the user's model.
        module = share_copy(model, copy_buffers=False)
        linear = [name for name, m in module.named_modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise InputError(
                f"expected a model whose last layer is an nn.Linear, got {type(model).__name__} without one; "
                "wrap it as nn.Sequential(model, nn.Linear(features, ways))"
            )
        self.head_name = linear[-1]
        self.module = _recorded_head(module, self.head_name)

    @property
    def head(self) -> Head:
        """The last layer of the network."""
        return self.module.get_submodule(self.head_name)  # type: ignore[return-value]

    def read_unit_length(self) -> None:
        """Let the last layer read features of unit length about a learned centre, for cosine classifiers."""
        self.head.centre = nn.Parameter(self.head.weight.new_zeros(self.head.in_features))

    def release_head(self) -> None:
        """Make the last layer's own weights buffers, for methods that make others, so no gradient reaches them."""
        for name in ("weight", "bias"):
            if name in self.head._parameters:  # and no buffer yet
                value = self.head._parameters.pop(name)
                self.head.register_buffer(name, None if value is None else value.detach())

    def head_weights(self, weight: Tensor, bias: Tensor | None, quadratic: Tensor | None = None) -> dict[str, Tensor]:
        """Last layers of T tasks, ``(T, C, D)``, ``(T, C)`` and if need be ``(T, C, D)``, by the names they have."""
        if quadratic is not None and not isinstance(self.head, Head):
            raise InputError(
                "classes of different numbers of shots need a plain nn.Linear at the end, got "
                f"{type(self.head).__name__}; give each class as many shots, or use base_learner='prototype'"
            )
        prefix = f"{self.head_name}." if self.head_name else ""
        parts = {"weight": weight, "bias": bias, "quadratic": quadratic}
        return {f"{prefix}{name}": w for name, w in parts.items() if w is not None}

    @property
    def head_names(self) -> list[str]:
        """Names of the weight of the last layer and, if it has one, its bias."""
        return list(self.head_weights(self.head.weight, self.head.bias))

    def check_ways(self, support: SupportSet) -> None:
        """Raise :class:`InputError` for tasks of other ways than the last layer has outputs."""
        if support.ways not in (None, self.head.out_features):
            raise InputError(
                f"the network's last layer has {self.head.out_features} outputs, got a task of {support.ways} ways; "
                "build the model for as many, or use a method that makes the last layer from the support set"
            )

    def targets(self, support: SupportSet, *, classes: bool) -> Tensor:
        """One-hot classes or values, ``(T, N, C)``; raises :class:`InputError` for values where there must be classes.

        Args:
            support: the support sets.
            classes: whether there must be classes.
        """
        if support.ways is not None:
            return support.one_hot(self.head.weight.dtype)
        if classes:
            raise InputError(
                "expected classes, of which each gets a vector, got values as targets; try base_learner='ridge' or "
                "'gradient'"
            )
        if support.y.shape[2:] != (self.head.out_features,):
            raise InputError(f"expected values of shape (T, N, {self.head.out_features}), got {tuple(support.y.shape)}")
        return support.y

    def own(self, names: Iterable[str], tasks: int) -> dict[str, Tensor]:
        """The network's own parameters of these names, for each of T tasks."""
        return {name: own.expand(tasks, *own.shape) for name, own in tensors(self.module, names)}

    def forward(
        self,
        x: Tensor | Inputs,
        weights: Mapping[str, Tensor] | None = None,
        statistics: Statistics | None = None,
        *,
        layers: Iterable[str] = (),
        track: bool = True,
    ) -> Pass:
        """Run T tasks.

        Args:
            x: samples ``(T, N, *)``, or the arguments of the pass of one task.
            weights: each task's own weights by name, ``(T, *shape)``; the others are the network's.
            statistics: of the support sets, for queries; ``None`` for a support set, which makes its own.
            layers: names of inner layers whose outputs are wanted too.
            track: whether running averages, where normalization layers keep some, take up those of a support set.
        """
        weights, layers = dict(weights or {}), tuple(layers)
        if len(x) == 1:
            given = statistics and {name: (mean[0], var[0]) for name, (mean, var) in statistics.items()}
            one = x if isinstance(x, Inputs) else Inputs((x[0],), {})
            own = {name: w[0] for name, w in weights.items()}
            seen = self.run_one(*one.args, weights=own, statistics=given, layers=layers, **one.kwargs)
        else:
            over = (0, None if statistics is None else 0, None, 0)
            run = partial(self._run, None)
            seen = vmap(run, in_dims=over, randomness="different")(weights, statistics, layers, x)
        if track and statistics is None and self.training:
            update_running(self.module, seen.statistics)
        return seen

    def run_one(
        self,
        *args: Any,
        weights: Mapping[str, Tensor] | None = None,
        statistics: Statistics | None = None,
        layers: tuple[str, ...] = (),
        on_logits: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> Pass:
        """One task without ``vmap``: faster, and any Python in the model and any arguments of it are fine.

        Args:
            *args: of the model.
            weights: the task's own, without a task dimension, as are the statistics; the pass has one.
            statistics: see :meth:`forward`.
            layers: see :meth:`forward`.
            on_logits: what the outputs of the last layer are changed by.
            **kwargs: of the model.
        """
        one = self._run(on_logits, dict(weights or {}), statistics, layers, *args, **kwargs)
        own = {name: (mean[None], var[None]) for name, (mean, var) in one.statistics.items()}
        shown = {name: output[None] for name, output in one.layers.items()}
        return Pass(one.outputs[None], one.logits[None], one.features[None], own, shown)

    @cached_property
    def places(self) -> dict[str, list[str]]:
        """Where the module holds each parameter and buffer, see :func:`~l2l_hyper.functional.slots`."""
        return slots(self.module)  # which cannot change, and takes as long as an operation or ten

    def _run(
        self,
        on_logits: Callable[[Tensor], Tensor] | None,
        weights: dict[str, Tensor],
        statistics: Statistics | None,
        layers: tuple[str, ...],
        *args: Any,
        **kwargs: Any,
    ) -> Pass:
        now = _HeadPass(on_logits)
        shown: dict[str, Tensor] = {}
        hooks = [
            self.module.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: shown.update({name: y}))
            for name in layers
        ]
        token = _HEAD.set(now)
        try:
            # Only the convolutions that are taken out of vmap are reached by torch.autocast.
            own_convolutions = kernels.enabled() or autocast_enabled(self.head.weight.device)
            with (
                kernels.task_convolutions() if own_convolutions else nullcontext(),
                statistics_of(self.module, statistics) as recorded,
            ):
                outputs = call(self.module, self.places, weights, *args, **kwargs)
        finally:
            _HEAD.reset(token)
            for hook in hooks:
                hook.remove()
        if len(now.seen) != 1 or not isinstance(outputs, Tensor) or outputs.numel() != now.seen[0][1].numel():
            raise InputError(
                f"expected a model that makes its outputs from those of its last nn.Linear ({self.head_name!r}), which "
                "runs once, got one that does not; try l2l_hyper.HyperSGD, which takes any module"
            )
        features, logits = now.seen[0]
        return Pass(outputs, logits, features, {**(statistics or {}), **recorded}, shown)


def linear_map(features: int) -> nn.Linear:
    """A square linear map that begins as the identity."""
    layer = nn.Linear(features, features, bias=False)
    nn.init.eye_(layer.weight)
    return layer


def class_means(features: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
    """Mean feature of each class, ``(T, C, D)``, and the number of its samples, ``(T, C, 1)``.

    Args:
        features: ``(T, N, D)``.
        one_hot: classes ``(T, N, C)``.
    """
    counts = one_hot.sum(-2).unsqueeze(-1)
    return one_hot.transpose(-1, -2) @ features / counts, counts


def _recorded_head(module: nn.Module, name: str) -> nn.Module:
    """The module with its last layer a :class:`Head` wherever the tree holds it, and its passes recorded."""
    linear = module.get_submodule(name)
    head: nn.Module = Head.of(linear) if type(linear) is nn.Linear else linear
    if not isinstance(linear, Head):  # the network may have been seen in this way before
        head.register_forward_hook(_record)
    if linear is module:
        return head
    for parent in list(module.modules()):
        parent._modules.update({key: head for key, child in parent._modules.items() if child is linear})
    return module


def _record(head: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    now = _HEAD.get()
    if now is not None:
        output = output if now.change is None else now.change(output)
        features = head.read(inputs[0]) if isinstance(head, Head) else inputs[0]
        now.seen.append((features.to(output.dtype), output))
    return output
