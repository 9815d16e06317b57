"""Memory stays flat over thousands of evaluation episodes."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from l2l_hyper import HyperAdapter, HyperSGD

STATM = Path("/proc/self/statm")


def megabytes() -> float:
    gc.collect()
    return int(STATM.read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not STATM.exists(), reason="memory in use is read from Linux's /proc")
@pytest.mark.parametrize("how", ["support, no gradients", "loss, never propagated back", "HyperSGD", "one clone"])
def test_two_thousand_evaluation_episodes_are_flat(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5))
    hyper = HyperSGD(model, 0.1) if how == "HyperSGD" else HyperAdapter(model, 0.1, width=16, blocks=1)
    x, q, y = torch.randn(5, 64), torch.randn(75, 64), torch.arange(5)
    one = hyper.clone()

    def episode() -> None:
        if how.startswith("support"):
            with torch.no_grad():
                learner = hyper.clone()
                learner.adapt(support=(x, y))
                learner(q)
        elif how == "one clone":  # called again and again, and never adapted
            one(q)
        else:
            learner = hyper.clone()
            learner.adapt(F.cross_entropy(learner(x), y))
            learner(q)

    for _ in range(300):
        episode()
    before = megabytes()
    for _ in range(2000):
        episode()
    assert megabytes() - before < 4  # a record kept an episode would be 20 kB, 40 MB in all
