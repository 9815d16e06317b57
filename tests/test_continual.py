"""Continual learning: the penalty, what is held and what is learned, tasks inferred, and the study."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from uses import continual as study

from l2l_hyper import InputError
from l2l_hyper.uses import ContinualNetwork


def network(**options: float) -> ContinualNetwork:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    return ContinualNetwork(model, 3, features=5, **options).double()  # type: ignore[arg-type]


def moved(net: ContinualNetwork) -> ContinualNetwork:
    with torch.no_grad():
        for p in net.hyper.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def test_penalty_is_the_mean_square_that_weights_of_earlier_tasks_have_moved_by() -> None:
    net = network(strength=0.5)
    net.begin(0)
    assert net.penalty() == 0
    held = [net.hyper(net.embeddings[0])]
    moved(net).begin(1)
    held = [net.hyper(net.embeddings[0])]
    moved(net).begin(2)
    held = [net.hyper(e) for e in list(net.embeddings)[:2]]
    assert net.penalty() == 0
    moved(net)
    distances = [
        sum((w - held[t][name].detach()).square().sum() for name, w in net.hyper(net.embeddings[t].detach()).items())
        for t in range(2)
    ]
    slow = 0.5 * torch.stack(distances).mean()
    torch.testing.assert_close(net.penalty(), slow)
    parameters = list(net.hyper.parameters())
    for ours, theirs in zip(*(torch.autograd.grad(p, parameters) for p in (net.penalty(), slow)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_embeddings_of_earlier_tasks_stay() -> None:
    net = network()
    net.begin(0)
    moved(net).begin(1)
    moved(net)
    (net(torch.randn(8, 4).double(), 1).square().sum() + net.penalty()).backward()
    assert [e.grad is not None for e in net.embeddings] == [False, True, False]


def test_tasks_are_begun_in_order() -> None:
    net = network()
    with pytest.raises(InputError, match="expected task 0 to be next, got 1"):
        net.begin(1)
    for task in range(3):
        net.begin(task)
    with pytest.raises(InputError, match="tasks=3 are all begun; give tasks=4 or more"):
        net.begin(3)


def test_a_saved_network_goes_on_with_its_penalty() -> None:
    net = network()
    net.begin(0)
    moved(net).begin(1)
    moved(net)
    other = network()
    other.load_state_dict(net.state_dict())
    assert net.penalty() > 0 and torch.equal(other.penalty(), net.penalty())


def test_the_penalty_prevents_forgetting() -> None:
    """Two tasks with opposite answers to the same samples."""
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).double()
    y = (x[:, 0] > 0).long()
    right = {}
    for strength in (0.0, 0.1):
        net = network(strength=strength)
        for task, labels in enumerate((y, 1 - y)):
            net.begin(task)
            optimizer = torch.optim.Adam(net.parameters(), 0.02)
            for _ in range(80):
                optimizer.zero_grad()
                (F.cross_entropy(net(x, task), labels) + net.penalty()).backward()
                optimizer.step()
        right[strength] = [float((net(x, t).argmax(1) == want).double().mean()) for t, want in enumerate((y, 1 - y))]
    assert min(right[0.1]) > 0.9 and right[0.0][0] < 0.5 < 0.9 < right[0.0][1]


def test_the_task_is_that_of_the_most_certain_network() -> None:
    net = network()
    for task in range(2):
        net.begin(task)
    x = torch.randn(50, 4).double()
    outputs = torch.stack([net(x, t) for t in range(2)])
    torch.testing.assert_close(net.of_all_tasks(x), outputs)
    certain = outputs.softmax(-1).max(-1).values  # of two classes, the order is that of the entropies
    assert torch.equal(net.infer(x), certain.argmax(0)) and 0 < net.infer(x).sum() < 50


def test_study_of_forgetting(tmp_path: Path) -> None:
    tasks = study.split_digits(study.Settings(), 0)
    assert [t.first for t in tasks] == [0, 2, 4, 6, 8] and sum(len(t.train[1]) + len(t.test[1]) for t in tasks) == 1797
    assert {int(label) for t in tasks for label in t.test[1]} == {0, 1}
    first, second = study.permuted_digits(study.Settings(permutations=2), 0)
    assert torch.equal(first.test[0].sort(1).values, second.test[0].sort(1).values)
    assert not torch.equal(first.test[0], second.test[0])

    inner = first.validation()
    both = torch.cat([inner.train[0], inner.test[0]])
    assert torch.equal(both.unique(dim=0), first.train[0].unique(dim=0)) and len(both) == len(first.train[0])

    after = [{"task known": [1.0]}, {"task known": [0.75, 1.0]}, {"task known": [0.5, 0.5, 0.8]}]
    assert study.final_and_forgetting(after, "task known") == pytest.approx((0.6, 0.5))

    arguments = ["--out", str(tmp_path), "--iterations", "2", "--permutations", "2", "--hidden", "8"]
    study.main(study.Settings, study.run, study.report, [*arguments, "--seeds", "0", "1"])
    table = (tmp_path / "results.md").read_text()
    assert table.count("±") == 4 * 7 + 1 and "permuted digits, not regularised" in table
    assert (tmp_path / "accuracy.png").stat().st_size > 10000
