"""MAML through ``higher``: another implementation, to check that all agree."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import torch
from torch import nn

from ...data.episode import SupportSet
from ...functional import statistics_of
from .. import maml
from .one_task import AdaptedTask, TaskByTask, support_pass

__all__ = ["HigherMAML"]


class HigherMAML(TaskByTask):
    """Finn et al. 2017 with the inner loop of Grefenstette et al. 2019, https://arxiv.org/abs/1910.01727."""

    def __init__(self, model: nn.Module, options: maml.MAMLOptions) -> None:
        super().__init__()
        self.model, self.options = model, options

    def adapt_task(self, support: SupportSet) -> AdaptedTask:
        """Inner steps on a functional copy, then the statistics of the support set under its new weights."""
        second_order = torch.is_grad_enabled() and not self.options.first_order
        x, y = support.x[0], support.y
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.options.inner_lr)
        with (
            torch.enable_grad(),
            _higher().innerloop_ctx(
                self.model, optimizer, copy_initial_weights=False, track_higher_grads=second_order
            ) as (learner, inner),
        ):
            for _ in range(self.options.steps):
                with statistics_of(learner, None) as statistics:
                    loss = support.loss(learner(x)[None], y).sum()
                inner.step(loss)
        if statistics:  # which the queries use; so far they are of the weights before the last step
            _, statistics = support_pass(learner, x, update=self.model)
        return AdaptedTask(learner, learner, statistics, list(learner.parameters()))


def _higher() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # its old spellings, told when Python first compiles them
        return importlib.import_module("higher")
