"""Memory stays flat over evaluation episodes."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from l2l_hyper import HyperAdapter, HyperSGD

STATM = Path("/proc/self/statm")
HOW = ["support, no gradients", "loss, never propagated back", "HyperSGD", "one clone"]

pytestmark = pytest.mark.skipif(not STATM.exists(), reason="memory in use is read from Linux's /proc")


def in_use() -> tuple[float, int]:
    """Megabytes and Python objects."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * 4096 / 2**20, len(gc.get_objects())


@pytest.mark.parametrize("how", HOW)
def test_evaluation_episodes_are_flat(how: str, episodes: int = 200) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(640, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5))
    hyper = HyperSGD(model, 0.1) if how == "HyperSGD" else HyperAdapter(model, 0.1, width=16, blocks=1)
    x, q, y = torch.randn(5, 640), torch.randn(75, 640), torch.arange(5)
    one = hyper.clone()

    def episode() -> None:
        if how.startswith("support"):
            with torch.no_grad():
                learner = hyper.clone()
                learner.adapt(support=(x, y))
                learner(q.clone())
        elif how == "one clone":  # called again and again, and never adapted
            one(q.clone())
        else:
            learner = hyper.clone()
            learner.adapt(F.cross_entropy(learner(x), y))
            learner(q.clone())

    for _ in range(50):
        episode()
    megabytes, objects = in_use()
    for _ in range(episodes):
        episode()
    megabytes_after, objects_after = in_use()
    assert megabytes_after - megabytes < 4  # queries kept by each episode would be 190 kB, 38 MB in all
    assert objects_after - objects < episodes / 2


@pytest.mark.campaign
@pytest.mark.parametrize("how", HOW)
def test_two_thousand_evaluation_episodes_are_flat(how: str) -> None:
    test_evaluation_episodes_are_flat(how, 2000)
