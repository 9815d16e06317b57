"""Many tasks at once through layers that read one at a time: the same answers, one after the other, and said once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from l2l_hyper import HyperAdapter, convert_norm
from l2l_hyper.data.episode import SupportSet
from l2l_hyper.methods import METHODS, TaskwiseNetwork

WAYS, TASKS, LENGTH = 3, 4, 5
METHOD_NAMES = ("hyper-adapter", "maml", "anil", "protonet")


class Recurrent(nn.Module):
    """Sequences ``(N, L, 4)`` to logits."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(4, 8, batch_first=True)
        self.out = nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.recurrent(x)[0][:, -1])


class Cell(nn.Module):
    """Sequences ``(N, L, 4)`` to logits, step by step."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell = kind(4, 8)
        self.out = nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


class Decides(nn.Module):
    """Looks at its numbers in Python, which ``vmap`` does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 8), nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x.mean(1))
        return self.out(h.tanh() if float(h.detach().sum()) > 0 else h.sigmoid())


def instance_norm() -> nn.Module:
    norm = nn.InstanceNorm1d(8, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Conv1d(LENGTH, 8, 2), norm, nn.Tanh(), nn.Flatten(), nn.Linear(24, WAYS))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
    "RNN": lambda: Recurrent(nn.RNN),
    "LSTMCell": lambda: Cell(nn.LSTMCell),
    "GRUCell": lambda: Cell(nn.GRUCell),
    "RNNCell": lambda: Cell(nn.RNNCell),
    "InstanceNorm": instance_norm,
    "Decides": Decides,
}


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[kind]()


def tasks() -> tuple[SupportSet, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(WAYS).repeat(2)
    x, query = (torch.randn(TASKS, len(y), LENGTH, 4, generator=generator) for _ in range(2))
    return SupportSet(x, y.expand(TASKS, -1), WAYS), query


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", METHOD_NAMES)
def test_many_tasks_are_as_each_alone_and_it_is_said_once(name: str, kind: str) -> None:
    support, query = tasks()
    torch.manual_seed(2)
    method = METHODS[name].build(made(kind), {}, "support")
    torch.manual_seed(2)
    alone = METHODS[name].build(made(kind), {}, "support")
    with pytest.warns(UserWarning, match="one after the other, which is slower") as said:
        outputs = method.predict(method.adapt(support), query)
        outputs.square().mean().backward()
    assert len(said) == 1
    expected = torch.cat([alone.predict(alone.adapt(one), q) for one, q in zip(support, query.split(1), strict=True)])
    expected.square().mean().backward()
    torch.testing.assert_close(outputs, expected)
    for p, other in zip(method.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("base_learner", ["gaussian", "prototype", "ridge", "gradient"])
def test_learners_adapt_many_tasks_as_their_clones_adapt_one(base_learner: str, kind: str) -> None:
    support, query = tasks()
    hyper = HyperAdapter(made(kind), 0.3, base_learner=base_learner, width=16)
    with pytest.warns(UserWarning, match="one after the other"):
        outputs = hyper.predict_tasks(hyper.adapt_tasks(support.x, support.y), query)
    for task in range(TASKS):
        learner = hyper.clone()
        learner.adapt(nn.functional.cross_entropy(learner(support.x[task]), support.y[task]))
        torch.testing.assert_close(outputs[task], learner(query[task]), rtol=1e-4, atol=1e-5)


def test_running_averages_move_once_by_the_mean_over_tasks_of_the_support_sets() -> None:
    support, query = tasks()
    model = made("InstanceNorm")
    network, norm = TaskwiseNetwork(model), model[1]
    features = model[0](support.x.flatten(0, 1))
    with pytest.warns(UserWarning, match="InstanceNorm1d '1' cannot read several at once"):
        network(support.x)
    torch.testing.assert_close(norm.running_mean, 0.1 * features.mean((0, 2)))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * features.var(2).mean(0))
    before = norm.running_mean.clone()
    network(query, statistics={})
    network(support.x, track=False)
    assert torch.equal(norm.running_mean, before)


def test_in_evaluation_instance_norm_reads_many_tasks_at_once() -> None:
    support, _ = tasks()
    network = TaskwiseNetwork(made("InstanceNorm").eval()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = network(support.x).outputs
    torch.testing.assert_close(together, torch.cat([network(x).outputs for x in support.x.split(1)]))


def test_statistics_and_inner_layers_are_those_of_each_task() -> None:
    support, query = tasks()
    model = convert_norm(
        nn.Sequential(Recurrent(nn.GRU), nn.BatchNorm1d(WAYS), nn.Tanh(), nn.Linear(WAYS, 2)), "support"
    )
    network = TaskwiseNetwork(model)
    with pytest.warns(UserWarning, match="GRU '0.recurrent'"):
        seen = network(support.x, layers=["0.out"])
    assert seen.layers["0.out"].shape == (TASKS, 6, WAYS) and seen.statistics["1"][0].shape == (TASKS, WAYS)
    torch.testing.assert_close(seen.statistics["1"][0], seen.layers["0.out"].mean(1))
    outputs = network(query, None, seen.statistics).outputs
    one = {"1": tuple(of[2:3] for of in seen.statistics["1"])}
    torch.testing.assert_close(outputs[2:3], network(query[2:3], None, one).outputs)  # type: ignore[arg-type]
