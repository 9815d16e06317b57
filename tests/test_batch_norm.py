"""BatchNorm in learners does what it does under learn2learn's MAML, or what ``normalization`` says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_hyper import HyperAdapter, HyperSGD, InputError
from l2l_hyper._learn2learn import learn2learn

l2l = learn2learn()
Make = Callable[[nn.Module], Any]


def network(**batch_norm: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16, **batch_norm), nn.Tanh(), nn.Linear(16, 3)).double()


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Far from zero, where running averages begin."""
    torch.manual_seed(1)
    x, q = torch.randn(2, 12, 6, dtype=torch.double) + 3
    return x, torch.arange(3).repeat(4), q, torch.arange(3).repeat(4)


def maml(model: nn.Module) -> Any:
    return l2l.algorithms.MAML(model, 0.1)


def hyper_sgd(model: nn.Module) -> HyperSGD:
    return HyperSGD(model, 0.1).double()


def adapter(base_learner: str, **options: Any) -> Make:
    return lambda model: HyperAdapter(model, 0.1, base_learner=base_learner, width=16, **options).double()


SAME_AS_MAML = {"HyperSGD": hyper_sgd, "gradient": adapter("gradient", generate="*", residual=False)}
READ_FEATURES = {name: adapter(name) for name in ("gaussian", "prototype", "ridge", "own")}
EVERY = {**SAME_AS_MAML, **READ_FEATURES, "modulated": adapter("gaussian", generate="0.*")}


def meta_train(hyper: Any, iterations: int = 3, steps: int = 2) -> None:
    """As a script of learn2learn does it."""
    x, y, q, qy = data()
    for _ in range(iterations):
        learner = hyper.clone()
        for _ in range(steps):
            learner.adapt(F.cross_entropy(learner(x), y))
        F.cross_entropy(learner(q), qy).backward()


def averages(model: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in model.named_buffers() if name.endswith(("running_mean", "running_var", "tracked"))}


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("make", SAME_AS_MAML.values(), ids=SAME_AS_MAML)
def test_running_averages_move_through_clones_as_under_maml(make: Make, momentum: float | None) -> None:
    models = network(momentum=momentum), network(momentum=momentum)
    meta_train(make(models[0]))
    meta_train(maml(models[1]))
    expected = averages(models[1])
    assert expected["1.running_mean"].any()
    torch.testing.assert_close(averages(models[0]), expected)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("make", READ_FEATURES.values(), ids=READ_FEATURES)
def test_running_averages_are_those_of_the_passes_where_adaptation_leaves_the_features(make: Make, steps: int) -> None:
    """As under ANIL: each forward pass counts once, in whatever mini-batches the support set is read."""
    models = network(), network()
    meta_train(make(models[0]), steps=steps)
    x, _, q, _ = data()
    for _ in range(3):
        for _ in range(steps):
            models[1](x)
        models[1](q)
    torch.testing.assert_close(averages(models[0]), averages(models[1]))


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_each_pass_counts_once(make: Make) -> None:
    """The support set in two mini-batches and the queries, whether or not adaptation changes the features."""
    model, (x, y, q, _) = network(), data()
    learner = make(model).clone()
    for part in (slice(0, 6), slice(6, 12)):
        learner.adapt(F.cross_entropy(learner(x[part]), y[part]))
    learner(q)
    assert averages(model)["1.num_batches_tracked"] == 3


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_evaluation_uses_running_averages_and_moves_nothing(make: Make) -> None:
    model, (x, y, q, _) = network(), data()
    hyper = make(model)
    meta_train(hyper)
    before = {name: t.clone() for name, t in averages(model).items()}
    learner = hyper.eval().clone()
    learner.adapt(F.cross_entropy(learner(x), y))
    together = learner(q)
    torch.testing.assert_close(torch.cat([learner(one.unsqueeze(0)) for one in q]), together)
    assert all(torch.equal(t, before[name]) for name, t in averages(model).items())


@pytest.mark.parametrize("make", SAME_AS_MAML.values(), ids=SAME_AS_MAML)
def test_evaluation_is_mamls(make: Make) -> None:
    x, y, q, _ = data()
    outputs = []
    for build in (make, maml):
        hyper = build(network())
        meta_train(hyper)
        learner = hyper.eval().clone()
        learner.adapt(F.cross_entropy(learner(x), y))
        outputs.append(learner(q))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", SAME_AS_MAML.values(), ids=SAME_AS_MAML)
def test_layers_without_running_averages_normalize_as_under_maml(make: Make, training: bool) -> None:
    x, y, q, _ = data()
    outputs = []
    for build in (make, maml):
        learner = build(network(track_running_stats=False)).train(training).clone()
        learner.adapt(F.cross_entropy(learner(x), y))
        outputs.append(learner(q))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize(
    "make", [adapter(n, normalization=m) for n in READ_FEATURES for m in ("running", "transductive")]
)
def test_one_value_per_channel_is_refused_with_a_way_out(make: Make) -> None:
    x, y, q, _ = data()
    learner = make(network()).clone()
    learner.adapt(F.cross_entropy(learner(x), y))
    with pytest.raises(
        InputError, match=r"one value per channel .* use normalization='support', or 'running' with eval"
    ):
        learner(q[:1])


def test_one_value_per_channel_is_fine_where_there_are_statistics() -> None:
    """A 1x1 map and one query, from the support set's statistics or running averages."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 1, 3, 3, dtype=torch.double), torch.arange(3).repeat(2)
    for normalization, training in (("support", True), ("support", False), ("running", False)):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
        learner = HyperAdapter(model, normalization=normalization).double().train(training).clone()
        learner.adapt(F.cross_entropy(learner(x), y))
        torch.testing.assert_close(torch.cat([learner(one.unsqueeze(0)) for one in x]), learner(x))


@pytest.mark.parametrize("base_learner", ["gaussian", "prototype", "ridge", "own"])
def test_support_statistics_are_those_of_all_mini_batches(base_learner: str) -> None:
    x, y, q, _ = data()
    make = adapter(base_learner, normalization="support")
    at_once, in_parts = make(network()).clone(), make(network()).clone()
    at_once.adapt(support=(x, y))
    for part in (slice(0, 6), slice(6, 12)):
        in_parts.adapt(support=(x[part], y[part]))
    torch.testing.assert_close(in_parts(q), at_once(q))
    torch.testing.assert_close(torch.cat([in_parts(one.unsqueeze(0)) for one in q]), at_once(q))
