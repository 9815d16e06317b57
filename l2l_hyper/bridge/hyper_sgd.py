"""HyperSGD: gradient steps whose updates a hypernetwork generates, for any module at all."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..functional import clone_tree, install, slots
from ..settings import Positive, checked_value
from .models import check_plain, is_running_average
from .transform import HyperTransform

__all__ = ["HyperSGD"]

L = TypeVar("L", bound="HyperSGD")


class HyperSGD(nn.Module):
    r"""MAML with a generated update, :math:`W \leftarrow W - \alpha\,H_\theta(\partial L/\partial W)`.

    :class:`~l2l_hyper.HyperAdapter` reads a support set through the outputs of a last linear layer.  This learner needs
    neither layer nor outputs, only a loss: it takes policies, distributions, any module, whose methods and attributes
    use the task's weights once it is adapted.  Untrained it is ``l2l.algorithms.MAML`` exactly, see
    :class:`~l2l_hyper.bridge.HyperTransform`.

    Args:
        model: any module.
        lr: inner learning rate α.
        first_order: whether gradients taken on the support set are constants.
        allow_unused: whether ``adapt`` accepts parameters on which the loss does not depend; they stay as they are.
            ``None`` means as ``allow_nograd``.
        allow_nograd: whether ``adapt`` accepts frozen parameters; they stay as they are.

    Raises:
        InputError: if ``model`` is not a module with parameters to learn, or is wrapped in ``DistributedDataParallel``
            or ``DataParallel``, compiled or scripted.

    Example:
        >>> hyper = HyperSGD(nn.Linear(4, 1), lr=0.1)
        >>> learner = hyper.clone()
        >>> learner.adapt(learner(torch.randn(8, 4)).square().mean())
        >>> learner(torch.randn(8, 4)).square().mean().backward()
        >>> all(p.grad is not None for p in hyper.parameters())
        True
    """

    module: nn.Module

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise InputError(f"expected an nn.Module to adapt, got {type(model).__name__}")
        check_plain(model)
        learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not learned:
            raise InputError(f"expected a module with parameters that require gradients, got {type(model).__name__}")
        self.module = model
        self.lr = lr if isinstance(lr, Tensor) else checked_value(Positive, lr, "lr", "try 0.1")
        self.first_order = first_order
        self.allow_unused = allow_nograd if allow_unused is None else allow_unused
        self.allow_nograd = allow_nograd
        self._compile: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # arguments of compile(), for clones
        # Names of modules hold no dots.
        self.transforms = nn.ModuleDict({name.replace(".", "/"): HyperTransform(p) for name, p in learned.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_modules"]["module"], name)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compile": None}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module answers, with the task's weights after ``adapt``."""
        return self.module(*args, **kwargs)

    def clone(
        self: L, first_order: bool | None = None, allow_unused: bool | None = None, allow_nograd: bool | None = None
    ) -> L:
        """A learner for one task: new tensors, through which gradients flow to the meta-parameters."""
        copied = clone_tree(self, shared=is_running_average)
        copied.first_order = self.first_order if first_order is None else first_order
        copied.allow_unused = self.allow_unused if allow_unused is None else allow_unused
        copied.allow_nograd = self.allow_nograd if allow_nograd is None else allow_nograd
        if copied._compile is not None:  # a compiled module calls the one that it was compiled from
            args, kwargs = copied._compile
            copied.compile(*args, **kwargs)
        return copied

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what makes the updates, see :func:`torch.compile` for the arguments; the module stays as it is."""
        self._compile = args, kwargs
        for transform in self.transforms.values():
            transform.compile(*args, **kwargs)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of any module; a clone's tensors are no leaves, and gradients pass through them."""
        if all(p.is_leaf for p in self.parameters()):
            super().zero_grad(set_to_none)

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """Take one generated step down the loss.

        Args:
            loss: a scalar made from this learner's outputs.
            first_order: overrides the learner's.
            allow_unused: overrides the learner's.
            allow_nograd: overrides the learner's.

        Raises:
            InputError: for a loss that is not a finite scalar or does not depend on the parameters, and for frozen
                parameters without ``allow_nograd``.
        """
        second_order = not (self.first_order if first_order is None else first_order)
        allow_unused = self.allow_unused if allow_unused is None else allow_unused
        allow_nograd = self.allow_nograd if allow_nograd is None else allow_nograd
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not torch.isfinite(loss):
            got = loss if isinstance(loss, (Tensor, float, int)) else type(loss).__name__
            raise InputError(f"expected a finite scalar loss, got {got}; try loss.mean() and look at the inputs")
        weights = dict(self.module.named_parameters())
        frozen = [name for name, w in weights.items() if not w.requires_grad]
        if frozen and not allow_nograd:
            raise InputError(f"parameters must require gradients, {frozen[0]!r} does not; try allow_nograd=True")
        learned = {name: w for name, w in weights.items() if w.requires_grad}
        try:
            gradients = torch.autograd.grad(
                loss,
                list(learned.values()),
                create_graph=second_order,
                retain_graph=second_order,
                allow_unused=allow_unused,
            )
        except RuntimeError as error:
            raise InputError(
                f"expected a loss that depends on every parameter of this learner ({str(error).splitlines()[0]}); "
                "compute it with the clone that adapts, or try allow_unused=True"
            ) from error
        pairs = zip(learned.items(), gradients, strict=True)
        updated = {name: w - self.lr * self._update(name, g) for (name, w), g in pairs if g is not None}
        install(self.module, slots(self.module), updated)

    def _update(self, name: str, gradient: Tensor) -> Tensor:
        return self.transforms[name.replace(".", "/")](gradient)
