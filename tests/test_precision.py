"""Mixed precision: the network in bfloat16, what is generated for it in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import train
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from l2l_hyper import HyperAdapter, InputError
from l2l_hyper.experiment.config import Experiment, Run
from l2l_hyper.functional import EpisodicBatchNorm


class Convolutions(TorchDispatchMode):
    """The types that convolutions within the block compute in."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.types.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def network() -> nn.Module:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(c, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()) for c in (1, 8)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32, 3))


def tasks(count: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    labels = torch.arange(3).repeat(2)
    kinds = torch.randn(count, 3, 1, 8, 8)[:, labels]
    support, query = (kinds + torch.randn(count, 6, 1, 8, 8) / 2 for _ in range(2))
    return support, query, labels.expand(count, 6)


def loss(learner: HyperAdapter, count: int, *, mixed: bool) -> tuple[Tensor, dict[str, Tensor], set[torch.dtype]]:
    support, query, labels = tasks(count)
    with Convolutions() as seen, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        adapted = learner.adapt_tasks(support, labels)
        outputs = learner.predict_tasks(adapted, query)
        value = F.cross_entropy(outputs.flatten(0, 1), labels.flatten())
    return value, adapted.weights, seen.types


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("base_learner", ["gaussian", "prototype", "ridge", "gradient"])
@pytest.mark.parametrize("generate", [(), "*"])
def test_the_network_is_in_bfloat16_and_the_generated_weights_are_not(
    base_learner: str, generate: Any, count: int
) -> None:
    learner = HyperAdapter(network(), lr=0.1, base_learner=base_learner, generate=generate, normalization="support")
    exact, _, _ = loss(learner, count, mixed=False)
    mixed, weights, types = loss(learner, count, mixed=True)
    assert types == {torch.bfloat16}
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert mixed.dtype == torch.float32
    assert mixed.item() != exact.item()
    torch.testing.assert_close(mixed, exact, rtol=0.05, atol=0.02)
    directions = []
    for value in (exact, mixed):
        learner.zero_grad()
        value.backward()
        directions.append(torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None]))
    assert F.cosine_similarity(*directions, dim=0) > 0.9


def test_statistics_of_bfloat16_are_those_of_float32() -> None:
    x = (100 + torch.randn(200, 3)).bfloat16()  # whose squares bfloat16 could not tell apart
    y = EpisodicBatchNorm(3)(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, EpisodicBatchNorm(3)(x.float()).bfloat16())


def test_training_in_bfloat16(tmp_path: Path) -> None:
    experiment = Experiment(
        tasksets="glyphs",
        queries=2,
        iterations=3,
        meta_batch=4,
        validation_episodes=4,
        test_episodes=4,
        channels=8,
    )
    losses = [
        train(Run(experiment=replace(experiment, precision=precision), method="hyper-adapter"), tmp_path / precision)[
            "losses"
        ]
        for precision in ("float32", "bfloat16")
    ]
    assert losses[0] != losses[1]
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=0.1, atol=0.05)
    with pytest.raises(InputError, match="precision must be 'float32' or 'bfloat16', got 'half'"):
        replace(experiment, precision="half")
