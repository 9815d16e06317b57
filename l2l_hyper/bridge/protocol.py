"""learn2learn's protocol, clone() / adapt(loss) / forward, around a method."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ..data.episode import SupportSet, cross_entropy, squared_error
from ..errors import InputError
from ..functional import clone_tree, held_statistics, hold_statistics, install, tensors, update_running
from ..memory import require_memory
from ..methods.contract import Method
from ..methods.inner_loop import require_gradients
from ..methods.taskwise import Adapted, Inputs, Pass, TaskwiseNetwork
from ..settings import Count, checked_value
from .forward_passes import ForwardPass, passes_behind
from .loss_recovery import Recovered, recover
from .models import check_plain, is_running_average
from .penalty import Switch, following_the_loss
from .support_pieces import Piece, are_close, are_shares, check_every_class, labels_of, merged, same_samples, samples_of

__all__ = ["Learner"]

L = TypeVar("L", bound="Learner")


class Learner(nn.Module):
    """A method that answers as ``l2l.algorithms.MAML`` does.

    A clone is a model of its own, with new tensors through which gradients flow to the meta-parameters: whatever is
    done to it (``zero_grad``, an optimizer, ``load_state_dict``, ``double``) stays there.  Once adapted it holds the
    task's weights and statistics as its own, so it saves, loads, moves and exports as any module.

    **What a further** ``adapt`` **does.**  A method that goes down a loss (``iterative``) takes a further step from
    where it is.  Any other reads the support set: new samples are added to those it has read, and the same samples
    again change nothing.

    Args:
        method: the method; for ``adapt(loss)`` one with a :class:`~l2l_hyper.methods.taskwise.TaskwiseNetwork` in
            ``network``.
        allow_nograd: whether ``adapt`` accepts frozen generated weights, which then stay as they are.
    """

    method: Method

    def __init__(self, method: Method, *, allow_nograd: bool = False) -> None:
        super().__init__()
        network = getattr(method, "network", None)
        check_plain(network.module if isinstance(network, TaskwiseNetwork) else method)
        self.method = method
        self.allow_nograd = allow_nograd
        self._adapted: Any = None
        self._pieces: tuple[Piece, ...] = ()
        self._replaced: dict[str, Tensor | None] = {}  # what adaptation has put the task's weights in the place of
        self._of_classes = True
        self._ways = None if self._network is None else self._network.head.out_features
        self._frozen_names: list[str] | None = None  # of a clone, whose own tensors do not tell
        self._compile: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # arguments of compile(), for clones
        if self._network is not None:  # the network goes by the name that it has in learn2learn's learners
            self.register_state_dict_post_hook(_named_as_in_learn2learn)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            method = self.__dict__["_modules"]["method"]
            network = method._modules.get("network")
            if name == "module" and network is not None:
                return network.module
            return getattr(method if network is None else network.module, name)

    def __getstate__(self) -> dict[str, Any]:
        # A graph neither copies nor pickles; the adapted weights are tensors of the module.
        adapted = None if self._network is not None else self._adapted
        return {**super().__getstate__(), "_adapted": adapted, "_compile": None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if self._network is not None:  # a hook would belong to the learner that this one is a clone of
            _renamed(state_dict, prefix + _IN_LEARN2LEARN, prefix + _HERE)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self: L, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> L:
        """As of any module; what a clone was adapted from and to follows ``double()`` and ``to()`` with its graph."""
        super()._apply(fn, recurse)
        self._replaced = {name: w if w is None else fn(w) for name, w in self._replaced.items()}
        self._pieces = tuple(piece.converted(fn) for piece in self._pieces)
        if isinstance(self._adapted, Adapted):
            self._adapted = self._adapted.converted(fn)
            self._install(self._frozen())
        return self

    @property
    def _network(self) -> TaskwiseNetwork | None:
        network = getattr(self.method, "network", None)
        return network if isinstance(network, TaskwiseNetwork) else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns: with its own weights before ``adapt``, with the task's afterwards."""
        network, adapted = self._network, self._adapted
        if network is None or not (adapted is None or isinstance(adapted, Adapted)):  # what predicts is not a network
            if adapted is None or len(args) != 1 or kwargs:
                raise InputError(
                    f"{type(self.method).__name__} answers queries only once it is adapted, one tensor at a time; "
                    "call adapt(support=(x, y)) first"
                )
            return self.method.predict(adapted, args[0].unsqueeze(0)).squeeze(0)
        if not torch.is_grad_enabled():
            return network.run_one(*args, statistics=held_statistics(network.module) or None, **kwargs).returned
        weights = self._initial().weights if self._iterative and adapted is None else {}
        passed: list[Tensor] = []
        switch = Switch()

        def on_logits(logits: Tensor) -> Tensor:
            if isinstance(adapted, Adapted) and isinstance(adapted.penalty, Tensor) and self._of_classes:
                logits = following_the_loss(logits, adapted.penalty.sum(), switch)
            if not logits.requires_grad:  # a loss must lead back to the logits, were everything before them frozen
                logits = logits + logits.new_zeros((), requires_grad=True)
            passed.append(logits)
            return logits

        seen = network.run_one(
            *args,
            weights={name: w[0] for name, w in weights.items()},
            statistics=held_statistics(network.module) or None,
            on_logits=on_logits,
            **kwargs,
        )
        if self.training:
            update_running(network.module, seen.statistics)
        record = ForwardPass(
            weakref.ref(self),
            args,
            kwargs,
            seen.features,
            seen.logits.detach(),
            seen.statistics,
            adapted.weights if isinstance(adapted, Adapted) and self._iterative else weights,
            switch,
        )
        node = passed[0].grad_fn
        assert node is not None
        record.keep_in(node)
        return seen.returned

    def adapt(
        self,
        loss: Tensor | None = None,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
        *,
        support: tuple[Tensor, Any] | None = None,
        labels: Any = None,
        ways: int | None = None,
    ) -> None:
        """Adapt to a task, from the loss on its support set or from the support set itself.

        Args:
            loss: ``loss(learner(x), y)``, a scalar; the labels are recovered from its derivative, see
                :func:`~l2l_hyper.bridge.loss_recovery.recover`.
            first_order: overrides the learner's.
            allow_unused: overrides the learner's.
            allow_nograd: overrides the learner's.
            support: samples and labels ``(x, y)`` instead of a loss, -100 for a sample or token that has none.  Works
                under ``torch.no_grad()``.
            labels: with ``loss``, the labels y, for losses that do not show them.
            ways: with ``support``, number of classes; defaults to the outputs of the network's last layer.  Where y may
                be values, it says that numbers ``(N, ways)`` which sum to one are shares of classes.

        Raises:
            InputError: if there is no forward pass to adapt from; if the loss does not depend on the outputs of exactly
                one, or on more than the outputs; if it is not finite or does not show the labels; if labels lie outside
                the ways, or a class has no sample.
        """
        self.before_adapting()
        if (loss is None) == (support is None):
            raise InputError(f"adapt needs a loss or support=(x, y), got {'neither' if loss is None else 'both'}")
        if self._iterative:
            require_gradients()
        frozen = self._frozen()
        if frozen and not (self.allow_nograd if allow_nograd is None else allow_nograd):
            raise InputError(f"generated weights must require gradients, {frozen[0]!r} does not; try allow_nograd=True")
        method = self._method(first_order, allow_unused)
        if support is not None:
            self._read(method, self._given(*samples_of(support), ways), None)
        elif self._iterative:
            assert loss is not None
            self._descend(method, loss, labels)
        else:
            assert loss is not None
            piece, seen = self._recovered(*self._about(loss, labels))
            self._read(method, piece, seen)
        self._install(frozen)

    def clone(
        self: L, first_order: bool | None = None, allow_unused: bool | None = None, allow_nograd: bool | None = None
    ) -> L:
        """A learner for one task: new tensors, through which gradients flow to the meta-parameters."""
        copied = clone_tree(self, shared=is_running_average)
        copied._frozen_names = self._frozen()
        copied.method = copied._method(first_order, allow_unused)
        if allow_nograd is not None:
            copied.allow_nograd = allow_nograd
        if copied._iterative and copied._adapted is None:
            # Its parameters are what the inner loop goes down, so terms of a loss that name them count as in MAML.
            copied._adapted = copied._initial().converted(Tensor.clone)  # no views, which a change in place would sever
            copied._install(copied._frozen_names)
        if copied._compile is not None:  # a compiled module calls the one that it was compiled from
            args, kwargs = copied._compile
            copied.method.compile(*args, **kwargs)
        return copied

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what makes the weights, see :func:`torch.compile` for the arguments; the network stays as it is."""
        self._compile = args, kwargs
        self.method.compile(*args, **kwargs)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of any module; a clone's tensors are no leaves, and gradients pass through them."""
        if all(p.is_leaf for p in self.parameters()):
            super().zero_grad(set_to_none)

    def penalty(self) -> Tensor | float:
        """The penalty of the adapted method, which a plain script's cross-entropy is followed by on its own.

        In a script whose query loss is not a cross-entropy of the outputs, add it to the loss.
        """
        return 0.0 if self._adapted is None else torch.as_tensor(self.method.penalty(self._adapted)).sum()

    def before_adapting(self) -> None:
        """What a kind of learner looks at before it adapts."""

    def adapt_tasks(self, support: Tensor, labels: Tensor, *, ways: int | None = None) -> Any:
        """Adapt to T tasks at once, from samples ``(T, N, *)`` and classes ``(T, N)`` or values ``(T, N, C)``."""
        self.before_adapting()
        of_values = labels.is_floating_point()
        ways = None if of_values else self._ways if ways is None else ways
        whole = SupportSet(support, labels, ways, squared_error if of_values else cross_entropy)
        whole.check_labels(every_class=getattr(self.method, "needs_every_class", False))
        adapted = self.method.adapt(whole)
        _require_finite(adapted, support)
        return adapted

    def predict_tasks(self, adapted: Any, query: Tensor) -> Tensor:
        """Outputs ``(T, Q, C)`` on queries ``(T, Q, *)`` of the tasks that were adapted to."""
        return self.method.predict(adapted, query)

    @property
    def _iterative(self) -> bool:
        return bool(getattr(self.method, "iterative", False))

    def _initial(self) -> Adapted:
        with torch.enable_grad():
            return self.method.initial(1)  # type: ignore[operator]

    def _method(self, first_order: bool | None, allow_unused: bool | None) -> Method:
        """The method, or a copy of it that takes gradients in another way."""
        given = {"first_order": first_order, "allow_unused": allow_unused}
        changed = {
            name: value for name, value in given.items() if value not in (None, getattr(self.method, name, None))
        }
        if not changed:
            return self.method
        method = copy.copy(self.method)
        for name, value in changed.items():
            setattr(method, name, value)
        return method

    def _frozen(self) -> list[str]:
        """Names of the generated weights that do not require gradients, as they are in the meta-learner."""
        if self._frozen_names is not None:
            return self._frozen_names
        if self._network is None or not hasattr(self.method, "initial"):
            return []
        return [name for name, w in self._initial().weights.items() if not w.requires_grad]

    # From what a script gives to support sets

    def _given(self, x: Tensor, y: Any, ways: int | None) -> Piece:
        y, columns = labels_of(y, len(x), x.device)
        if y.is_floating_point():
            of_classes = getattr(self.method, "needs_every_class", False) or (columns is not None and ways == columns)
            shares = of_classes and y.dim() == 2 and are_shares(y)
            return Piece((x,), {}, y, columns if shares else None)
        ways = next((n for n in (ways, columns, self._ways) if n is not None), None)
        if ways is None:
            raise InputError("expected ways= with support=, as the method has no last layer to tell them by; got None")
        ways = checked_value(Count, ways, "ways")
        require_memory(8 * len(x) * ways, f"a support set of {ways:,} ways", "ask for fewer ways")
        kept, is_token = y.flatten() != -100, y.dim() > 1
        y = y.flatten()[kept]
        if len(y) and (y.min() < 0 or y.max() >= ways):
            raise InputError(
                f"labels must lie in 0 … {ways - 1} for {ways} ways, got {int(y.min())} … {int(y.max())}; "
                "try ways=, relabel the task, or head= if another nn.Linear makes the outputs"
            )
        return Piece((x,), {}, y, ways, kept) if is_token else Piece((x if kept.all() else x[kept],), {}, y, ways)

    def _recovered(self, record: ForwardPass, found: Recovered | None) -> tuple[Piece, Pass]:
        """Samples of weight zero are not in the loss, so they are not in the support set."""
        assert found is not None
        kept, rows = found.weights > 0, None
        args, targets = record.args, found.targets
        seen = Pass(record.logits, record.logits, record.features, record.statistics, {})
        if not kept.all():
            targets = targets[kept]
            if len(args) == 1 and not record.kwargs and len(args[0]) == len(kept):
                args = (args[0][kept],)
                assert self._network is not None
                seen = self._network(args[0].unsqueeze(0), track=False)  # whose statistics are of those in the loss
            else:  # tokens, or a model of several inputs, which pass as they are
                rows, seen = kept, seen.of_rows(kept)
        one_hot = targets.round()
        if found.kind == "values" and targets.shape[-1] > 1 and are_shares(one_hot) and are_close(targets, one_hot):
            targets, is_class = one_hot, not getattr(self.method, "needs_every_class", False)
        else:
            is_class = found.kind == "classes"
        hard = is_class and bool(((targets == 0) | (targets == 1)).all())
        y = targets.argmax(-1) if hard else targets
        return Piece(args, record.kwargs, y, targets.shape[-1] if is_class else None, rows), seen

    def _read(self, method: Method, piece: Piece, seen: Pass | None) -> None:
        """Adapt a method that reads the support set to the mini-batches so far, this one included."""
        pieces = self._pieces if self._pieces and self._pieces[0].ways == piece.ways and not self._iterative else ()
        same = [i for i, held in enumerate(pieces) if same_samples(held, piece)]
        if same and all(torch.equal(getattr(pieces[same[0]], of), getattr(piece, of)) for of in ("y", "every_row")):
            return
        pieces = (*(held for i, held in enumerate(pieces) if i not in same), piece)
        whole = merged(pieces)
        if getattr(method, "needs_every_class", False):
            check_every_class(whole)
        plain = len(whole.args) == 1 and not whole.kwargs and whole.rows is None
        x: Any = whole.args[0].unsqueeze(0) if plain else Inputs(whole.args, whole.kwargs, whole.rows)
        loss = squared_error if whole.ways is None else cross_entropy
        if self._adapted is not None and not self._iterative and self._network is not None:
            install(self._network.module, self._network.places, self._replaced)
            seen = None if seen is None else self._network(x, track=False)
        support = SupportSet(x, whole.y.unsqueeze(0), whole.ways, loss, seen)
        if self._iterative and self._adapted is not None:
            before = self._adapted
            if not torch.is_grad_enabled():  # the inner loop takes gradients all the same
                frozen = self._frozen()
                weights = {name: w.detach().requires_grad_(name not in frozen) for name, w in before.weights.items()}
                before = replace(before, weights=weights)
            adapted = method.adapt(support, before)  # type: ignore[call-arg]
        else:
            adapted = method.adapt(support)
        _require_finite(adapted, x)
        self._adapted, self._pieces, self._of_classes = adapted, pieces, whole.ways is not None

    def _descend(self, method: Method, loss: Tensor, labels: Any) -> None:
        """Let a method take a step down the script's own loss, whatever that is."""
        reads_labels = getattr(method, "reads_labels", True)
        record, found = self._about(loss, labels, recovering=reads_labels)
        piece = Piece(record.args, record.kwargs, record.logits.new_zeros(0), None)
        seen = Pass(record.logits, record.logits, record.features, record.statistics, {})
        if found is not None:
            piece, seen = self._recovered(record, found)
            if piece.rows is None and len(piece.y) != record.logits.shape[1]:
                raise InputError(
                    "the loss leaves out some of the samples that were passed; pass those in the loss alone"
                )
            self._of_classes = piece.ways is not None
        x: Any = Inputs(piece.args, piece.kwargs, piece.rows)
        support = SupportSet(x, piece.y.unsqueeze(0), piece.ways, lambda *_: loss, seen)
        before = self._adapted if self._adapted is not None else Adapted(record.weights, steps=0)
        self._adapted = method.adapt(support, before)  # type: ignore[call-arg]

    # What a loss is about

    def _about(self, loss: Tensor, labels: Any, *, recovering: bool = True) -> tuple[ForwardPass, Recovered | None]:
        """The one forward pass of this learner that the loss depends on, and what its derivative shows."""
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = getattr(loss, "shape", type(loss).__name__)
            raise InputError(f"expected a scalar loss, got {got}; try loss.mean()")
        if not torch.isfinite(loss):
            raise InputError(f"expected a finite loss, got {loss.item()}; look at the inputs and the learning rate")
        passes, beside = passes_behind(loss, self)
        if len(passes) != 1:
            raise InputError(
                "expected a loss on the outputs of one forward pass of this learner with gradients, got one on "
                f"{len(passes)}; compute loss = f(learner(x), y) with the learner that adapts, on the whole support "
                "set at once, or use adapt(support=(x, y)), which also works under torch.no_grad()"
            )
        if beside and not (self._iterative and self._adapted is not None):
            raise InputError(
                "the loss has a term that is not about the outputs, such as weight decay or a proximal term: it "
                f"reaches {beside[0]!r} beside them, and a closed form cannot honour it; leave the term to the query "
                "loss, or use l2l_hyper.HyperSGD or base_learner='gradient', which go down the whole loss"
            )
        node, record = passes[0]
        record.penalty.on = False
        if not recovering:
            return record, None
        edge = GradientEdge(node, 0)
        (delta,) = torch.autograd.grad(loss, edge, create_graph=True)
        delta = delta.flatten(0, -2) if delta.dim() > 2 else delta  # of tokens, each is a row
        return record, recover(record.logits[0], delta, loss, labels, at=edge)

    def _install(self, frozen: Sequence[str]) -> None:
        """Make the task's weights and statistics those of the module."""
        network, adapted = self._network, self._adapted
        if network is None or not isinstance(adapted, Adapted):
            return
        weights = {name: w[0] for name, w in adapted.weights.items() if name not in frozen}
        self._replaced = {**dict(tensors(network.module, weights)), **self._replaced}
        network.head.register_buffer("quadratic", None)
        install(network.module, network.places, weights)
        network.head.out_features = len(network.head.weight)
        hold_statistics(network.module, {name: (mean[0], var[0]) for name, (mean, var) in adapted.statistics.items()})


_HERE, _IN_LEARN2LEARN = "method.network.module.", "module."


def _named_as_in_learn2learn(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    _renamed(state, prefix + _HERE, prefix + _IN_LEARN2LEARN)


def _renamed(state: dict[str, Any], old: str, new: str) -> None:
    for name in [name for name in state if name.startswith(old)]:
        state[new + name.removeprefix(old)] = state.pop(name)


def _require_finite(adapted: Any, x: Any) -> None:
    """Raise ``InputError`` for weights that are not finite."""
    weights = adapted.weights.values() if isinstance(adapted, Adapted) else ()
    if not all(bool(w.isfinite().all()) for w in weights):
        bad = isinstance(x, Tensor) and not x.isfinite().all()
        reason = "has samples that are not finite; look at the data" if bad else "does not; try a smaller learning rate"
        raise InputError(f"expected a support set that gives finite weights, got one that {reason}")
