"""Optimizers by name, with the backbone as a group of its own, and the schedules of their learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from ...errors import InputError
from .options import Recipe

__all__ = ["backbone_parameters", "learning_rate_factor", "make_optimizer", "set_learning_rate"]


def learning_rate_factor(recipe: Recipe, share_done: float) -> float:
    """What the learning rate is multiplied by once ``share_done`` of the training, from 0 to 1, is done."""
    if share_done < recipe.warmup:
        return share_done / recipe.warmup
    share = (share_done - recipe.warmup) / (1 - recipe.warmup)
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * share)) / 2
    return 1.0 if recipe.schedule == "constant" else 0.1 ** min(int(3 * share), 2)


def backbone_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a backbone but for those of its last ``nn.Linear``, which makes the outputs."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    last = {id(p) for p in linear[-1].parameters()} if linear else set()
    return [p for p in model.parameters() if id(p) not in last]


def make_optimizer(
    recipe: Recipe, lr: float, method: nn.Module, backbone: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer of a method, in which the parameters of the backbone have a learning rate of their own.

    A group's share of the learning rate is its entry "factor", see :func:`set_learning_rate`.

    Args:
        recipe: optimizer, weight decay and learning rate of the backbone.
        lr: learning rate of the others.
        method: what is trained.
        backbone: the parameters of the network that the method was built around.

    Raises:
        InputError: when the backbone is to have a learning rate of its own but none of its parameters is trained.
    """
    parameters, own = [p for p in method.parameters() if p.requires_grad], {id(p) for p in backbone}
    if recipe.backbone_lr != 1 and not any(id(p) in own for p in parameters):
        raise InputError(
            f"backbone_lr is {recipe.backbone_lr}, but {type(method).__name__} trains no parameter of the backbone it "
            "was given; leave backbone_lr at 1, or let the method use the backbone's own parameters"
        )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in parameters:
        factor = recipe.backbone_lr if id(p) in own else 1.0
        groups.setdefault((factor, recipe.weight_decay if p.ndim > 1 else 0.0), []).append(p)
    tables = [
        {"params": members, "lr": lr * factor, "factor": factor, "weight_decay": decay}
        for (factor, decay), members in groups.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(tables, lr=lr, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(tables, lr=lr, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
