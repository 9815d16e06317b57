"""Episodes, a backbone and methods of double precision, small enough to differentiate by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from l2l_hyper.data.episode import Episodes
from l2l_hyper.methods import METHODS, Method

WAYS, SHOTS, QUERIES, TASKS = 4, 2, 3, 3


def small_network(ways: int = WAYS) -> nn.Sequential:
    """Smooth, so that finite differences meet no kink; its last feature map has 4 channels of 3 x 3 positions."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2),
        nn.BatchNorm2d(6),
        nn.Softplus(),
        nn.Conv2d(6, 4, 1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, ways),
    )


def larger() -> nn.Sequential:
    """An encoder for the samples of small networks, with running averages."""
    torch.manual_seed(7)
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(108, 9)
    ).double()
    with torch.no_grad():
        network(torch.randn(20, 1, 8, 8, dtype=torch.double))
    return network


def small_episodes(ways: int = WAYS, shots: int = SHOTS, tasks: int = TASKS, *, seed: int = 2) -> Episodes:
    """Episodes whose classes differ by a mean image of their own."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    means = randn(tasks, ways, 1, 8, 8)
    labels = torch.arange(ways)
    y, qy = labels.repeat_interleave(shots).expand(tasks, -1), labels.repeat(QUERIES).expand(tasks, -1)
    x = means[:, y[0]] + randn(tasks, ways * shots, 1, 8, 8)
    query = means[:, qy[0]] + randn(tasks, ways * QUERIES, 1, 8, 8)
    return Episodes(x, y.contiguous(), query, qy.contiguous(), ways)


def small_method(
    name: str, *, model: nn.Module | None = None, normalization: str = "support", **options: Any
) -> Method:
    """A method of ``METHODS`` in double precision, without dropout, with noise on whatever is constant at the start."""
    torch.manual_seed(1)
    known = dataclasses.fields(METHODS[name].options)
    options = {**{field.name: 0.0 for field in known if "dropout" in field.name}, **options}
    encoder = small_network() if "encoder" in {field.name for field in known} and "distilled" in name else None
    if encoder is not None:
        with torch.no_grad():
            encoder(torch.randn(20, 1, 8, 8))  # gives it running averages
    model = small_network() if model is None else model
    method = METHODS[name].build(model, options, normalization, encoder).double()
    with torch.no_grad():
        for p in method.parameters():
            if p.requires_grad and (p == p.flatten()[0]).all():
                p.add_(0.3 * torch.randn_like(p))
    return method
