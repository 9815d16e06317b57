"""A network seen by many tasks: all of them in one pass, each with weights and normalization statistics of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from .. import kernels
from ..data.episode import SupportSet
from ..errors import InputError
from ..functional import (
    Statistics,
    autocast_enabled,
    full_precision,
    replaced,
    share_copy,
    slots,
    statistics_of,
    tensors,
    update_running,
)
from .head import Head, find_head, last_layer, record_head, recording, tied_to
from .in_turn import InstanceAverages, reads_in_turn
from .passes import Adapted, Inputs, Pass, stacked

__all__ = ["Adapted", "Head", "Inputs", "Pass", "TaskwiseNetwork", "class_means", "linear_map"]

# What is known of a network once it has run.
_ORIGIN = "its outputs come from its last layer"
_IN_TURN = "its tasks must go one after the other"

# How torch's layers say that they cannot read an input.
_UNREADABLE = (
    *("same dtype", "scalar type", "nput type", "shapes cannot be multiplied", "xpected input", "(unbatched)"),
    "channels",
)


class TaskwiseNetwork(nn.Module):
    """A network that runs for T tasks at once, under weights and statistics of each task's own.

    Weights that are not a task's own are shared, so their layers see one large batch.

    Args:
        model: the network.  Its parameters are shared, not copied.  Its last layer must be an ``nn.Linear``; what
            follows it without parameters, such as a log-softmax, is fine, and so are outputs in a tuple or mapping.
        head: name of that layer; by default it is found, see :func:`~l2l_hyper.methods.head.find_head`.  The first
            pass with gradients checks that the outputs come from it.

    Raises:
        InputError: if ``model`` has no such layer, see :func:`~l2l_hyper.methods.head.find_head`; from the first pass
            if the outputs come from another layer, with its name.

    Example:
        >>> network = TaskwiseNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5)))
        >>> seen = network(torch.randn(16, 10, 4))  # 16 tasks of 10 samples
        >>> seen.features.shape, seen.outputs.shape
        (torch.Size([16, 10, 8]), torch.Size([16, 10, 5]))
    """

    module: nn.Module

    def __init__(self, model: nn.Module, head: str | None = None) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise InputError(f"expected an nn.Module to adapt, got {type(model).__name__}")
        # A copy of the tree with the same tensors: what is changed below does not show in the user's model.
        module = share_copy(model)
        self.head_name = find_head(module, head)
        self.tied_to = tied_to(module, self.head_name)
        self.module = record_head(module, self.head_name)
        self._known: set[str] = set()  # of the network and all its clones, so that each thing is found or said once

    @property
    def head(self) -> Head:
        """The last layer of the network."""
        return self.module.get_submodule(self.head_name)  # type: ignore[return-value]

    def read_unit_length(self) -> None:
        """Let the last layer read features of unit length about a learned centre, for cosine classifiers."""
        self.head.centre = nn.Parameter(self.head.weight.new_zeros(self.head.in_features))

    def release_head(self) -> None:
        """Make the last layer's own weights buffers, for methods that make others, so no gradient reaches them."""
        self.check_own_head()
        for name in ("weight", "bias"):
            if name in self.head._parameters:  # and no buffer yet
                value = self.head._parameters.pop(name)
                self.head.register_buffer(name, None if value is None else value.detach())

    def check_own_head(self) -> None:
        """Raise :class:`InputError` for a last layer whose weight is another layer's too, as of a tied embedding."""
        if self.tied_to is not None:
            name = f"model.{self.head_name}.weight"
            raise InputError(
                f"the weight of the last layer {self.head_name!r} is also {self.tied_to!r}, and a task's last layer is "
                f"its own; untie it with {name} = nn.Parameter({name}.detach().clone())"
            )

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

    def last_layer(self, weights: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Logits ``(T, N, C)`` of what the last layer has read ``(T, N, D)``, under the weights of T tasks by name."""
        prefix = f"{self.head_name}." if self.head_name else ""
        names = ("weight", "bias", "quadratic")
        shared = {name: getattr(self.head, name, None) for name in names}
        own = {name: weights[f"{prefix}{name}"] for name in names if f"{prefix}{name}" in weights}
        with full_precision(features.device):
            return vmap(lambda x, own: last_layer(x, **{**shared, **own}))(features.to(own["weight"].dtype), own)

    @property
    def head_names(self) -> list[str]:
        """Names of the weight of the last layer and, if it has one, its bias, which are its own."""
        self.check_own_head()
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
        for own in [*weights.values(), *(mean for mean, _ in (statistics or {}).values())]:
            if len(own) != len(x):
                raise InputError(f"expected samples (T, N, *) of the {len(own)} tasks adapted to, got {len(x)} tasks")
        track = track and statistics is None and self.training
        seen = None
        if isinstance(x, Tensor) and len(x) > 1 and not self._goes_in_turn():
            seen = self._at_once(x, weights, statistics, layers)
        if seen is None:
            seen = self._in_turn(x, weights, statistics, layers, track=track)
        if track:
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
        one, returned = self._run(on_logits, dict(weights or {}), statistics, layers, *args, **kwargs)
        own = {name: (mean[None], var[None]) for name, (mean, var) in one.statistics.items()}
        shown = {name: output[None] for name, output in one.layers.items()}
        return Pass(one.outputs[None], one.logits[None], one.features[None], own, shown, returned)

    @cached_property
    def places(self) -> dict[str, list[str]]:
        """Where the module holds each parameter and buffer, see :func:`~l2l_hyper.functional.slots`."""
        return slots(self.module)  # which cannot change, and takes as long as an operation or ten

    def _goes_in_turn(self) -> bool:
        """Whether the tasks must go through the network one after the other, which is said once."""
        name = reads_in_turn(self.module)
        if name is not None:
            self._warn_in_turn(f"{type(self.module.get_submodule(name)).__name__} {name!r} cannot read several at once")
        return _IN_TURN in self._known

    def _warn_in_turn(self, reason: str) -> None:
        if _IN_TURN not in self._known:
            self._known.add(_IN_TURN)
            warnings.warn(
                f"tasks go through {type(self.module).__name__} one after the other, which is slower: {reason}",
                stacklevel=2,
            )

    def _at_once(
        self,
        x: Tensor,
        weights: dict[str, Tensor],
        statistics: Statistics | None,
        layers: tuple[str, ...],
    ) -> Pass | None:
        """One pass for all tasks; ``None`` where ``vmap`` cannot run the network."""

        def run(weights: dict[str, Tensor], statistics: Statistics | None, x: Tensor) -> tuple[Any, ...]:
            return self._run(None, weights, statistics, layers, x)[0][:-1]  # a tensor each

        try:
            return Pass(
                *vmap(run, (0, None if statistics is None else 0, 0), randomness="different")(weights, statistics, x)
            )
        except (RuntimeError, ValueError) as error:
            if not any(words in str(error) for words in ("vmap", "Batching rule")):
                raise
            self._warn_in_turn(str(error).splitlines()[0])
            return None

    def _in_turn(
        self,
        x: Tensor | Inputs,
        weights: dict[str, Tensor],
        statistics: Statistics | None,
        layers: tuple[str, ...],
        *,
        track: bool,
    ) -> Pass:
        """One task after the other; running averages of instance normalization move by the mean over the tasks."""
        averages, passes = InstanceAverages(self.module), []
        for task in range(len(x)):
            given = statistics and {name: (mean[task], var[task]) for name, (mean, var) in statistics.items()}
            one = x if isinstance(x, Inputs) else Inputs((x[task],), {})
            own = {**{name: w[task] for name, w in weights.items()}, **averages.of_next_task()}
            shown = self.run_one(*one.args, weights=own, statistics=given, layers=layers, **one.kwargs)
            passes.append(shown if one.rows is None else shown.of_rows(one.rows))
        if track:
            averages.move()
        return passes[0] if len(passes) == 1 else stacked(passes)

    def _run(
        self,
        on_logits: Callable[[Tensor], Tensor] | None,
        weights: dict[str, Tensor],
        statistics: Statistics | None,
        layers: tuple[str, ...],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Pass, Any]:
        """What one task shows, without a task dimension, and what the network returned."""
        find_origin = _ORIGIN not in self._known and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        # Weights and hooks are given to a copy: other threads may be running the module.
        hooked = bool(layers) or find_origin
        module = share_copy(self.module) if hooked else self.module
        shown: dict[str, Tensor] = {}
        for name in layers:
            module.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: shown.update({name: y}))
        module = replaced(module, self.places, weights)
        # Only the convolutions that are taken out of vmap are reached by torch.autocast.
        own_convolutions = kernels.enabled() or autocast_enabled(self.head.weight.device)
        with (
            recording(module, on_logits, find_origin=find_origin) as now,
            kernels.task_convolutions() if own_convolutions else nullcontext(),
            statistics_of(module, statistics) as recorded,
            _reading(*args),
        ):
            returned = module(*args, **kwargs)
        features, logits, outputs = now.of(returned, self.head_name)
        made = "weight" in self.head._buffers  # by a method, and exact only without other linear layers beside it
        if find_origin and now.check(returned, outputs, self.head_name, alone=made):
            self._known.add(_ORIGIN)
        return Pass(outputs, logits, features, {**(statistics or {}), **recorded}, shown), returned


@contextmanager
def _reading(*args: Any) -> Iterator[None]:
    """What a layer says of the shape or type of the samples, as an error about the samples."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _UNREADABLE):
            raise
        given = ", ".join(f"{arg.dtype} of shape {tuple(arg.shape)}" for arg in args if isinstance(arg, Tensor))
        raise InputError(
            f"expected samples that the network reads, got {given} ({str(error).splitlines()[0]}); try samples of the "
            "type of its weights, or a network for samples of this shape"
        ) from error


class _LinearMap(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype))


def linear_map(features: int) -> nn.Linear:
    """A square linear map that begins as the identity, in the precision of its input."""
    layer = _LinearMap(features, features, bias=False)
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
