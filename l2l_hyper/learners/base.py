"""learn2learn's protocol, clone() / adapt(loss) / forward, for one task."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..nn import Normalization, install, share_copy
from .batch import Adapted, BatchLearner, Pass, one_task, with_tasks
from .labels import recover_targets

__all__ = ["Learner"]

L = TypeVar("L", bound="Learner")


@dataclass(frozen=True)
class _Seen:
    """One forward pass that ``adapt(loss)`` may turn out to be about."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weights: dict[str, Tensor]
    shown: Pass


class Learner(BatchLearner):
    """A :class:`~l2l_hyper.learners.BatchLearner` that answers as ``l2l.algorithms.MAML`` does.

    The engine calls :meth:`adapt_tasks` and :meth:`predict_tasks` with many tasks; ``adapt`` and ``forward`` run the
    same code with one.

    Args:
        model: the network.
        normalization: "support", "transductive" or "running", see :class:`~l2l_hyper.nn.TaskNorm`.
        first_order: whether gradients taken on the support set are constants.
        allow_unused: whether ``adapt`` accepts generated weights on which the outputs do not depend; ``None`` means as
            ``allow_nograd``.
        allow_nograd: whether ``adapt`` accepts frozen generated weights, which then stay as they are.
    """

    needs_every_class: bool = False

    def __init__(
        self,
        model: nn.Module,
        *,
        normalization: Normalization,
        first_order: bool,
        allow_unused: bool | None,
        allow_nograd: bool,
    ) -> None:
        super().__init__(
            model,
            normalization=normalization,
            first_order=first_order,
            allow_unused=allow_nograd if allow_unused is None else allow_unused,
        )
        self.allow_nograd = allow_nograd
        self._state: Adapted | None = None
        self._seen = _records()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_modules"]["module"], name)

    def __getstate__(self) -> dict[str, Any]:
        # A record of a forward pass holds a graph, which neither copies nor pickles.
        return {**self.__dict__, "_seen": _records()}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Outputs of the network: with its own weights before ``adapt``, with the task's afterwards."""
        state = self.initial() if self._state is None else self._state
        given = {name: (mean[0], var[0]) for name, (mean, var) in state.statistics.items()} or None
        weights = {name: w[0] for name, w in state.weights.items()}
        if torch.is_grad_enabled():  # a loss must lead back to the logits, were everything before them frozen
            bias = self.generated[1]
            weights[bias] = weights[bias] if weights[bias].requires_grad else weights[bias].detach().requires_grad_()
        shown = self._run(weights, given, *args, **kwargs)
        if torch.is_grad_enabled():
            self._seen.append(_Seen(args, kwargs, state.weights, shown))
        return shown.outputs

    def adapt(
        self,
        loss: Tensor | None = None,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
        *,
        support: tuple[Tensor, Tensor] | None = None,
        ways: int | None = None,
    ) -> None:
        """Generate the task's weights, from the loss on its support set or from the support set itself.

        Args:
            loss: ``loss(learner(x), y)``, a scalar; the labels are recovered from its derivative, see
                :func:`~l2l_hyper.learners.labels.recover_targets`.
            first_order: overrides the learner's.
            allow_unused: overrides the learner's.
            allow_nograd: overrides the learner's.
            support: samples and labels ``(x, y)`` instead of a loss.  Works under ``torch.no_grad()``.
            ways: with ``support``, number of classes; defaults to the outputs of the network's last layer.

        Raises:
            InputError: if there is no forward pass to adapt from, if the loss does not depend on the outputs of
                exactly one, if it is not finite, or if labels lie outside the ways.
        """
        before = self.first_order, self.allow_unused, self.allow_nograd
        self._override(first_order, allow_unused, allow_nograd)
        try:
            if self._frozen() and not self.allow_nograd:
                raise InputError(
                    f"generated weights must require gradients, {self._frozen()[0]!r} does not; try allow_nograd=True"
                )
            if loss is not None and support is None:
                self._state = self._adapt_to_loss(loss)
            elif support is not None and loss is None:
                self._state = self._adapt_to_support(*support, ways)
            else:
                raise InputError(f"adapt needs a loss or support=(x, y), got {'both' if support else 'neither'}")
            self._seen = _records()
            # The module's attributes and methods show the task's weights, as with MAML.
            frozen = self._frozen()
            weights = {name: w[0] for name, w in self._state.weights.items() if name not in frozen}
            install(self.module, self._places, weights)
        finally:
            self.first_order, self.allow_unused, self.allow_nograd = before

    def clone(
        self: L, first_order: bool | None = None, allow_unused: bool | None = None, allow_nograd: bool | None = None
    ) -> L:
        """A learner for one task, sharing the meta-parameters, to which gradients flow, and nothing that changes."""
        copied = share_copy(self, copy_buffers=True)
        copied._seen = _records()
        copied._override(first_order, allow_unused, allow_nograd)
        return copied

    def _override(self, first_order: bool | None, allow_unused: bool | None, allow_nograd: bool | None) -> None:
        if first_order is not None:
            self.first_order = first_order
        if allow_unused is not None:
            self.allow_unused = allow_unused
        if allow_nograd is not None:
            self.allow_nograd = allow_nograd

    def _adapt_to_support(self, x: Tensor, y: Tensor, ways: int | None) -> Adapted:
        if not isinstance(y, Tensor) or len(x) != len(y):
            raise InputError(f"support=(x, y) needs one label a sample, got {len(x)} samples and {len(y)} labels")
        if not y.is_floating_point():
            classes = self.head.out_features if ways is None else ways
            if y.min() < 0 or y.max() >= classes:
                raise InputError(
                    f"labels must lie in 0 … {classes - 1} for {classes} ways, got {int(y.min())} … {int(y.max())}; "
                    "try ways= or relabel the task"
                )
            if self.needs_every_class:
                _check_every_class(F.one_hot(y, classes))
        state = self.initial() if self._state is None else self._state
        return self._adapt_explicitly(state, y.unsqueeze(0), ways, one_task(self._run, (x,), {}))

    def _adapt_to_loss(self, loss: Tensor) -> Adapted:
        seen, delta = self._what_loss_is_about(loss)
        targets, classification = recover_targets(seen.shown.logits, delta, loss)
        if classification and self.needs_every_class:
            _check_every_class(targets)
        steps = 0 if self._state is None else self._state.steps
        state, _ = self._step(
            Adapted(seen.weights, steps=steps),
            with_tasks(seen.shown),
            (targets[None], classification),
            delta[None],
            one_task(self._run, seen.args, seen.kwargs),
        )
        return state

    def _what_loss_is_about(self, loss: Tensor) -> tuple[_Seen, Tensor]:
        if not self._seen:
            raise InputError(
                "adapt(loss) before a forward pass with gradients: expected loss = f(learner(x), y) first; under "
                "torch.no_grad() use adapt(support=(x, y))"
            )
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InputError(
                f"expected a scalar loss, got {getattr(loss, 'shape', type(loss).__name__)}; try loss.mean()"
            )
        if not torch.isfinite(loss):
            raise InputError(f"expected a finite loss, got {loss.item()}; look at the inputs and the learning rate")
        deltas: tuple[Tensor | None, ...] = (None,) * len(self._seen)
        if loss.requires_grad:
            deltas = torch.autograd.grad(
                loss,
                [seen.shown.logits for seen in self._seen],
                create_graph=self.start_takes_gradients and not self.first_order,
                retain_graph=True,
                allow_unused=True,
            )
        about = [(seen, delta) for seen, delta in zip(self._seen, deltas, strict=True) if delta is not None]
        if len(about) != 1:
            raise InputError(
                f"expected a loss on the outputs of one forward pass since the last adapt, got one on {len(about)} of "
                f"{len(self._seen)}; pass the whole support set through the learner once, or use adapt(support=(x, y))"
            )
        return about[0]


def _records() -> deque[_Seen]:
    """Room for the last few forward passes: a learner that is called and never adapted must not keep every graph."""
    return deque(maxlen=8)


def _check_every_class(one_hot: Tensor) -> None:
    missing = (one_hot.sum(0) == 0).nonzero().flatten().tolist()
    if missing:
        raise InputError(
            f"every class needs a support sample, classes {missing} of {one_hot.shape[-1]} have none; "
            "build the model with as many outputs as the task has ways, or use adapt(support=(x, y), ways=...)"
        )
