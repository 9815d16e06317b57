"""HyperAdapter in the place of ``l2l.algorithms.MAML``: the method, around the user's own network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..functional import Normalization, convert_norm, share_copy
from ..memory import weights_fit
from ..methods import hyper_adapter
from ..registry import unknown_name
from ..settings import Positive, checked_value
from .models import check_plain
from .protocol import Learner

__all__ = ["HyperAdapter"]

_NOT_OF_A_LEARNER = {"lr", "inner_lr", "steps", "encoder", "bank", "teacher", "backbone", "backbone_options"}
_RENAMED = {"start": "base_learner", "change": "modulation"}


class HyperAdapter(Learner):
    r"""Hypernetwork adaptation in the place of ``l2l.algorithms.MAML``.

    The weights of a task with support set S are those of a base learner plus a generated residual,
    :math:`W(S) = B(S) + \Delta_\theta(S)`, which is zero before training; see
    :mod:`l2l_hyper.methods.hyper_adapter` for the formulas and :class:`~l2l_hyper.bridge.protocol.Learner` for what
    clones and further calls of ``adapt`` do.

    In a plain script the residual's penalty follows the loss of the queries, see :mod:`l2l_hyper.bridge.penalty`; in
    regression it is left out, unless the script adds ``learner.penalty()`` to its loss.

    Args:
        model: any network whose last layer is an ``nn.Linear``; a bare ``nn.Linear`` head too.
        lr: inner learning rate, used by ``base_learner="gradient"``; accepted by the others, so MAML's arguments fit.
        first_order: whether gradients taken on the support set are constants.
        allow_unused: whether generated weights on which the outputs do not depend are accepted; ``None`` means as
            ``allow_nograd``.
        allow_nograd: whether frozen generated weights are accepted; they stay as they are.
        normalization: what BatchNorm layers of the model compute their statistics from, see
            :class:`~l2l_hyper.functional.EpisodicBatchNorm`.  By default they do what BatchNorm does under MAML in
            learn2learn's scripts, so that a swap changes one thing; with "support" a query's prediction does not depend
            on the other queries.
        generate: shell patterns of the weights that are generated besides the last layer, such as ``["features.*"]``.
        encoder: a larger network that reads the support set besides ``model``; queries never pass through it.
        bank: samples of training classes ``(B, *)``, their labels unknown: the last layer repeats what ``encoder`` says
            of them, see :mod:`l2l_hyper.methods.distillation`.  It does so in evaluation mode alone: a script has to
            call ``eval()`` before it tests, and a warning says so.
        head: name of the last layer, for a network whose forward pass does not tell which ``nn.Linear`` that is; an
            error then says so.
        **options: of :class:`~l2l_hyper.methods.hyper_adapter.HyperAdapterOptions`: ``base_learner``, ``linear_map``,
            ``residual``, ``generator``, ``encoder_layers``, ``scale``, ``penalty``, ``width``, ``blocks``, ``heads``,
            ``dropout``, ``modulation``.

    Raises:
        InputError: if the model has no final linear layer, if it is wrapped in ``DistributedDataParallel`` or
            ``DataParallel``, compiled or scripted, or an option is unknown or not one of its choices.

    Example:
        >>> import torch
        >>> from torch.nn.functional import cross_entropy
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> hyper = HyperAdapter(model, lr=0.1)
        >>> x, y = torch.randn(10, 4), torch.arange(5).repeat(2)
        >>> learner = hyper.clone()
        >>> learner.adapt(cross_entropy(learner(x), y))
        >>> cross_entropy(learner(x), y).backward()
        >>> all(p.grad is not None for p in hyper.parameters())
        True
    """

    method: hyper_adapter.HyperAdapter

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.5,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = False,
        *,
        normalization: Normalization = "running",
        generate: str | Sequence[str] = (),
        encoder: nn.Module | None = None,
        bank: Tensor | None = None,
        head: str | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"expected an nn.Module to adapt, got {type(model).__name__}")
        for network in (model, encoder):
            if isinstance(network, nn.Module):
                check_plain(network)
        for name, value in {"first_order": first_order, "allow_nograd": allow_nograd}.items():
            checked_value(bool, value, name)
        checked_value(bool | None, allow_unused, "allow_unused")
        lr = checked_value(Positive, lr, "lr", "try 0.5")
        known = set(hyper_adapter.HyperAdapterOptions.__dataclass_fields__) - _NOT_OF_A_LEARNER
        for name in list(options):
            if name in _RENAMED:
                new, value = _RENAMED[name], options.pop(name)
                warnings.warn(f"HyperAdapter({name}=) is the old name of {new}=", DeprecationWarning, stacklevel=2)
                options[new] = "own" if value == "base" else value
            elif name not in known:
                raise unknown_name("option of HyperAdapter", name, known)
        encoder = checked_value(nn.Module | None, encoder, "encoder")
        if not isinstance(bank, Tensor | None):
            raise InputError(f"bank must be a tensor of samples (B, *), got {type(bank).__name__}")
        generate = checked_value(str | Sequence[str], generate, "generate")
        patterns = generate if isinstance(generate, str) else ",".join(generate)
        with weights_fit("HyperAdapter", options):
            method = hyper_adapter.HyperAdapter(
                convert_norm(share_copy(model), normalization),
                hyper_adapter.HyperAdapterOptions(inner_lr=lr, generate=patterns, **options),
                encoder=encoder,
                bank=bank,
                head=head,
                first_order=first_order,
                allow_unused=allow_nograd if allow_unused is None else allow_unused,
            )
        super().__init__(method, allow_nograd=allow_nograd)
        self.lr = lr

    def before_adapting(self) -> None:
        """Warn where something is left out in training mode."""
        if self.training and self.method.distillation is not None:
            warnings.warn(
                "in training mode the bank is not used; call eval() on the learner before its test", stacklevel=3
            )

    @property
    def first_order(self) -> bool:
        """Whether gradients taken on the support set are constants."""
        return self.method.first_order

    @property
    def allow_unused(self) -> bool:
        """Whether generated weights on which the outputs do not depend are accepted."""
        return self.method.allow_unused
