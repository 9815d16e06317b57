"""MAML through ``higher``: a second implementation, to check that two agree."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import statistics_of
from .base import AdaptedTask, OneByOne, support_pass

__all__ = ["HigherMAML"]


class HigherMAML(OneByOne):
    """Finn et al. 2017 with the inner loop of Grefenstette et al. 2019, https://arxiv.org/abs/1910.01727.

    Args:
        model: the network; normalization layers as :func:`~l2l_hyper.nn.convert_norm` makes them.
        lr: inner learning rate.
        steps: inner steps.
    """

    def __init__(self, model: nn.Module, *, lr: float, steps: int) -> None:
        super().__init__()
        self.model = model
        self.lr = lr
        self.steps = steps

    def adapt_task(self, x: Tensor, y: Tensor) -> AdaptedTask:
        """Inner steps on a functional copy, then the statistics of the support set under its new weights."""
        differentiable = torch.is_grad_enabled()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr)
        with (
            torch.enable_grad(),
            _higher().innerloop_ctx(
                self.model, optimizer, copy_initial_weights=False, track_higher_grads=differentiable
            ) as (learner, inner),
        ):
            for _ in range(self.steps):
                with statistics_of(learner, None) as statistics:
                    loss = F.cross_entropy(learner(x), y)
                inner.step(loss)
        if statistics:  # which the queries use; so far they are of the weights before the last step
            _, statistics = support_pass(learner, x, update=self.model)
        return AdaptedTask(learner, learner, statistics, sum(p.numel() for p in self.model.parameters()))


def _higher() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # its old spellings, told when Python first compiles them
        return importlib.import_module("higher")
